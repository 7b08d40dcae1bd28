"""The history on disks that are full, files that are damaged and entries that SQLite cannot hold. All are real."""

import os
import subprocess
import threading
import time

import pytest

from scentd.model import Decision, Profile, View
from scentd.state import history
from scentd.state.history import History

BLOOM = 128  # bytes


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "history.db"


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    where = tmp_path / "disk"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(where)], check=True)
    yield where
    subprocess.run(["umount", str(where)], check=True)


def view(number):
    profile = Profile("a", 100 + 5 * number, 5, 0.5, {"cpu": 0.9, "memory": 0.4}, os.urandom(BLOOM))
    return View("a", (profile,), float(number))


def decision(number):
    return Decision(float(number), "a", "p", number, "amount", "r", "1", "2", "cpu > 0.8 [cpu=0.9]")


def opened(path, size=64e6):
    return History(str(path), size, 1e12)


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def size_of(path):
    return sum(p.stat().st_size for p in path.parent.iterdir() if p.name in (path.name, f"{path.name}-wal"))


def test_a_full_disk_loses_nothing_within_the_bound(small_disk, caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr(history, "RETRY", 0.05)
    path, ballast = small_disk / "history.db", small_disk / "ballast"
    kept = opened(path)
    kept.append([decision(0)])
    assert kept.settle()
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    ballast.write_bytes(b"x" * free)
    kept.append([decision(i) for i in range(1, 1000)])
    wait_for(lambda: kept.counters()["history_errors"] > 2)
    assert [d.epoch for d in kept.account("a", 3).decisions] == [999, 998, 997]
    ballast.unlink()
    wait_for(lambda: kept.counters()["history_written"] == 1000)
    assert [d.epoch for d in kept.account("a", 2000).decisions] == list(range(1000))[::-1]
    assert kept.counters()["history_lost"] == 0
    assert caplog.text.count("kept in memory") == 1
    assert caplog.text.count("history.db: works again") == 1
    kept.close()


def test_a_file_system_that_becomes_read_only_stops_nothing(small_disk, monkeypatch):
    monkeypatch.setattr(history, "RETRY", 0.05)
    path = small_disk / "there" / "history.db"
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    kept = opened(path)
    kept.append([decision(1)])
    wait_for(lambda: kept.counters()["history_errors"] > 1)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    wait_for(lambda: kept.counters()["history_written"] == 1)
    kept.close()


def test_a_file_that_is_damaged_inside_is_moved_aside_once(path, caplog, monkeypatch):
    monkeypatch.setattr(history, "RETRY", 0.05)
    before = opened(path)
    before.append([decision(i) for i in range(5000)])
    before.close()
    content = bytearray(path.read_bytes())
    damage = range(8 * 4096, len(content), 4096)  # the first pages are whole: opening finds nothing
    for at in damage:
        content[at : at + 4096] = b"\xff" * 4096
    path.write_bytes(content)
    kept = opened(path)
    kept.append([decision(7)])
    wait_for(lambda: kept.counters()["history_written"] == 1)
    assert [d.epoch for d in kept.account("a", 10).decisions] == [7]
    (aside,) = [p for p in path.parent.iterdir() if "corrupt" in p.name]
    assert aside.read_bytes()[damage.start :] == content[damage.start :]
    assert caplog.text.count("and begun anew") == 1
    kept.close()


@pytest.mark.parametrize(("epoch", "reason"), [(2**70, ""), (1, "\ud800")])
def test_what_sqlite_cannot_hold_is_lost_alone(path, epoch, reason, caplog):
    kept = opened(path)
    kept.append([decision(1), Decision(1.0, "a", "p", epoch, "amount", "r", "1", "2", reason), decision(3)])
    assert kept.settle()
    assert [d.epoch for d in kept.account("a", 10).decisions] == [3, 1]
    assert kept.counters()["history_lost"] == 1
    assert kept.counters()["history_written"] == 2
    assert "an entry of decision is left out" in caplog.text
    kept.close()


@pytest.mark.parametrize("name", ["a?mode=memory.db", "a#b.db", "a%41.db", "a b.db"])
def test_any_name_of_a_file_can_be_read(tmp_path, name):
    path = tmp_path / name
    kept = opened(path)
    kept.append([decision(1)])
    assert kept.settle()
    assert len(kept.account("a", 10).decisions) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [name, f"{name}-shm", f"{name}-wal"]
    kept.close()


def test_a_hundred_thousand_views_stay_within_the_size(path, monkeypatch):
    monkeypatch.setattr(history, "VIEWS_A_SECOND", 100_000)
    monkeypatch.setattr(history, "GATHER", 0.0)
    size, largest = 2e6, 0
    kept = History(str(path), size, 1e12)
    for first in range(0, 100_000, 5000):
        kept.record([view(i) for i in range(first, first + 5000)], float(first))
        assert kept.settle(30)
        largest = max(largest, size_of(path))
    kept.close()
    assert largest < 2 * size
    assert path.stat().st_size < 1.2 * size
    seen = [v.profile.epoch for v in history.views(path, 0.0)]
    assert seen[-1] == 100 + 5 * 99_999
    assert seen == list(range(seen[0], seen[-1] + 1, 5))


def test_readers_do_not_disturb_the_writer(path):
    kept, ended = opened(path, size=1e6), threading.Event()
    kept.append([decision(0)])
    assert kept.settle()

    def read():
        while not ended.is_set():
            list(history.views(path, 0.0))
            kept.account("a", 100)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for first in range(0, 5000, 100):
        kept.append([decision(i) for i in range(first, first + 100)])
    assert kept.settle(30)
    ended.set()
    for reader in readers:
        reader.join(10)
    assert kept.counters()["history_errors"] == 0
    kept.close()
