"""Log files that grow, rotate, shrink, go and cannot be read. On a real file system, with real inotify."""

import asyncio
import os
import threading
import time
import tracemalloc

import pytest

from scentd.collect import tail
from scentd.collect.tail import LogFile, LogTail

NOBODY = 65534


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sub" / "log"


@pytest.fixture
def log(path):
    """A LogFile of a log with one old line."""
    path.parent.mkdir()
    path.write_bytes(b"old\n")
    made = LogFile(str(path))
    made.open()
    yield made
    made.close()


def append(path, data):
    with open(path, "ab") as file:
        file.write(data)


def read(made, monotonic=0.0):
    """All that is there, in as many looks as it takes."""
    found = []
    while True:
        lines, more = made.read(monotonic)
        found += lines
        if not more:
            return found


def counts(made):
    return {name: count for name, count in made.counters.items() if count}


# -- one file ------------------------------------------------------------


def test_only_what_comes_after_the_start_is_read(log, path):
    assert read(log) == []
    append(path, b"a\nb")
    assert read(log) == [b"a"]
    append(path, b"c\n\n")
    assert read(log) == [b"bc"]
    assert (counts(log), log.problem) == ({}, "")


@pytest.mark.parametrize(("old", "new"), [(b"ol", [b"next"]), (b"", [b"d", b"next"]), (b"x\n", [b"d", b"next"])])
def test_a_line_that_is_half_there_at_the_start_is_old(path, old, new):
    path.parent.mkdir()
    path.write_bytes(old)
    made = LogFile(str(path))
    made.open()
    append(path, b"d\nnext\n")
    assert read(made) == new
    made.close()


def test_binary_garbage_and_lines_of_ten_megabytes_cost_themselves_only(log, path):
    append(path, os.urandom(100_000).replace(b"\n", b"") + b"\n\xff\xfe\n" + b"x" * 10_000_000 + b"\nlast\n")
    tracemalloc.start()
    assert read(log) == [b"\xff\xfe", b"last"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert counts(log) == {"too_long": 2}
    assert peak < 8 * tail.CHUNK


def test_a_flood_is_read_in_bounded_steps(log, path):
    append(path, b"x" * 99 + b"\n")
    lines, more = log.read(0.0)
    assert (len(lines), more) == (1, False)
    append(path, (b"x" * 99 + b"\n") * 10_000)
    lines, more = log.read(0.0)
    assert (len(lines), more) == (tail.CHUNK // 100, True)
    assert len(lines) + len(read(log)) == 10_000


# -- rotation ------------------------------------------------------------


def rotate(path):
    """As logrotate's `create`: the writer may go on with the old file for a while."""
    path.rename(f"{path}.1")
    path.touch()


def test_a_rotated_file_is_read_to_its_end_and_on_for_a_while(log, path):
    append(path, b"a\n")
    rotate(path)
    append(f"{path}.1", b"b\n")
    append(path, b"c\n")
    assert read(log, 100.0) == [b"a", b"b", b"c"]
    append(f"{path}.1", b"late\n")
    append(path, b"d\n")
    assert read(log, 101.0) == [b"late", b"d"]
    assert read(log, 102.0 + tail.GRACE) == []
    append(f"{path}.1", b"too late\n")
    append(path, b"e\n")
    assert read(log, 103.0 + tail.GRACE) == [b"e"]
    assert counts(log) == {"rotated": 1}


def test_a_file_that_is_moved_away_is_read_until_another_has_its_name(log, path):
    path.rename(f"{path}.1")
    append(f"{path}.1", b"a\n")
    assert read(log) == [b"a"]
    assert "no file has this name" in log.problem
    append(f"{path}.1", b"b\n")
    append(path, b"c\n")
    assert read(log) == [b"b", b"c"]
    assert (log.problem, counts(log)) == ("", {"rotated": 1, "unreadable": 1})


def test_many_rotations_keep_two_files_open(log, path):
    before = len(os.listdir("/proc/self/fd"))
    for i in range(50):
        rotate(path)
        append(path, b"%d\n" % i)
        assert read(log) == [b"%d" % i]
    assert len(os.listdir("/proc/self/fd")) == before + 1
    assert counts(log) == {"rotated": 50}


@pytest.mark.parametrize("shrink", [b"", b"new\n"])
def test_a_truncated_file_is_read_from_its_beginning(log, path, shrink):
    """logrotate's `copytruncate`."""
    append(path, b"a" * 100 + b"\nhalf")
    assert read(log) == [b"a" * 100]
    path.write_bytes(shrink)
    assert read(log) == ([b"new"] if shrink else [])
    append(path, b"next\n")
    assert read(log) == [b"next"]
    assert counts(log) == {"truncated": 1}


def test_the_hole_of_a_writer_that_does_not_append_is_no_line(log, path):
    with open(path, "r+b", buffering=0) as writer:
        writer.seek(0, os.SEEK_END)
        writer.write(b"x" * 200_000 + b"\n")
        assert read(log) == []
        os.truncate(path, 0)
        assert read(log) == []
        writer.write(b"after the hole\n")
    assert read(log) == [b"after the hole"]


def test_a_symbolic_link_may_lead_to_another_file(log, path):
    target = path.with_name("other")
    target.write_bytes(b"all of it is new\n")
    path.unlink()
    path.symlink_to(target)
    assert read(log) == [b"all of it is new"]


# -- what cannot be read -------------------------------------------------


@pytest.mark.parametrize("directory", [True, False])
def test_a_file_that_comes_later_is_read_from_its_beginning(path, directory):
    made = LogFile(str(path))
    if directory:
        path.parent.mkdir()
    made.open()
    assert read(made) == []
    assert made.problem == f"{path}: {tail.HINTS[2]}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"a\n")
    assert read(made) == [b"a"]
    assert (made.problem, counts(made)) == ("", {"unreadable": 1})
    made.close()


def test_no_file_is_read_that_is_not_a_regular_one(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for other in (fifo, tmp_path, "/dev/null"):
        made = LogFile(str(other))
        made.open()
        assert "not a regular file" in made.problem
        assert read(made) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody who may not read")
def test_permission_denied_is_told_and_passes(tmp_path):
    """In a child that may not read what its owner has closed; what was written since its start is not lost."""
    path = tmp_path / "log"
    path.write_bytes(b"old\n")
    path.chmod(0)
    for above in (tmp_path, *tmp_path.parents[:3]):
        above.chmod(0o755)
    ours, theirs = os.pipe()
    go, wait = os.pipe()
    child = os.fork()
    if child == 0:
        os.setresuid(NOBODY, NOBODY, NOBODY)
        made = LogFile(str(path))
        made.open()
        os.write(theirs, made.problem.encode() + b"\n")
        os.read(go, 1)
        os.write(theirs, repr((read(made), made.problem, counts(made))).encode() + b"\n")
        os._exit(0)
    with open(ours, "rb") as said:
        os.close(theirs)
        assert b"permission denied; the unit needs the group" in said.readline()
        append(path, b"a\n")
        path.chmod(0o644)
        os.write(wait, b".")
        assert said.readline() == b"([b'a'], '', {'unreadable': 1})\n"
    os.waitpid(child, 0)


# -- the thread ----------------------------------------------------------


class Taken(list):
    """Lines, with the thread and the time at which each came."""

    def __call__(self, line):
        self.append((line, threading.current_thread().name, time.monotonic()))

    async def next(self, count, seconds=5):
        async with asyncio.timeout(seconds):
            while len(self) < count:
                await asyncio.sleep(0.001)
        return [line for line, _, _ in self]


def run(path, story):
    async def whole():
        taken = Taken()
        made = LogTail(str(path), taken)
        await made.start()
        try:
            await story(made, taken)
        finally:
            await made.close()
            await made.close()

    before = set(threading.enumerate())
    asyncio.run(whole())
    assert {t.name for t in set(threading.enumerate()) - before} <= {"asyncio_0"}


def test_each_line_comes_at_once_on_a_thread_of_its_own(path, monkeypatch):
    """By inotify alone: the regular looks would come too late for this test."""
    monkeypatch.setattr(tail, "LOOK", 600.0)
    path.parent.mkdir()
    path.write_bytes(b"old\n")

    async def story(made, taken):
        for i in range(3):
            append(path, b"%d\n" % i)
            await taken.next(i + 1)
            await asyncio.sleep(0.02)  # it waits again
        path.rename(f"{path}.1")
        await asyncio.sleep(0.1)  # there is none of this name
        append(path, b"new\n")
        await taken.next(4)
        append(f"{path}.1", b"late\n")
        await taken.next(5)
        path.write_bytes(b"")
        await asyncio.sleep(0.1)
        append(path, b"shrunk\n")
        assert await taken.next(6) == [b"0", b"1", b"2", b"new", b"late", b"shrunk"]
        assert {name for _, name, _ in taken} == {"collect-tail"}

    run(path, story)


def test_without_inotify_it_looks_regularly(path, monkeypatch, caplog):
    def none_left(**_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(tail, "INotify", none_left)  # in place of 128 of them
    monkeypatch.setattr(tail, "LOOK", 0.05)
    path.parent.mkdir()

    async def story(made, taken):
        append(path, b"a\n")
        assert await taken.next(1) == [b"a"]

    run(path, story)
    assert "no inotify (Too many open files)" in caplog.text


def test_a_directory_may_come_later(path, monkeypatch):
    monkeypatch.setattr(tail, "LOOK", 0.05)

    async def story(made, taken):
        assert "no file has this name" in made.problem
        path.parent.mkdir()
        path.write_bytes(b"a\n")
        assert await taken.next(1) == [b"a"]
        append(path, b"b\n")
        await taken.next(2)
        assert made.problem == ""

    run(path, story)


def test_a_line_that_its_reader_cannot_take_stops_nothing(path, caplog):
    path.parent.mkdir()
    path.write_bytes(b"")
    found = []

    def take(line):
        found.append(line)
        raise ValueError("a defect")

    async def whole():
        made = LogTail(str(path), take)
        await made.start()
        append(path, b"a\nb\n")
        async with asyncio.timeout(5):
            while len(found) < 2:
                await asyncio.sleep(0.005)
        await made.close()

    asyncio.run(whole())
    assert "please report it" in caplog.text


def test_a_reload_goes_on_where_the_one_before_was(path):
    """Also in the middle of a line, and whatever was written while nobody read."""
    path.parent.mkdir()
    path.write_bytes(b"old\n")

    async def story(made, taken):
        append(path, b"a\nhal")
        await taken.next(1)
        await asyncio.sleep(0.05)
        after = Taken()
        new = LogTail(str(path), after)
        new.adopt(made)
        await made.close()
        append(path, b"f\nb\n")
        await new.start()
        assert await after.next(2) == [b"half", b"b"]
        await new.close()

    run(path, story)


def test_closing_without_a_start():
    asyncio.run(LogTail("/nowhere", print).close())
