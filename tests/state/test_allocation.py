"""What the allocator must know after a restart, on a real disk that may be full, torn or foreign."""

import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from scentd.state.allocation import AllocationFile

ROWS = {("amount", "r", "a"): b"1", ("amount", "r", "b"): b"2", ("policy", "p", "a"): b"3"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "allocation.db"


def load(path):
    file = AllocationFile(path)
    try:
        return file.load()
    finally:
        file.close()


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_rows_are_written_changed_and_removed(path):
    file = AllocationFile(path)
    assert file.load() == {}
    file.save(ROWS)
    file.save({("amount", "r", "a"): b"new", ("policy", "p", "a"): None})
    file.close()
    assert load(path) == {("amount", "r", "a"): b"new", ("amount", "r", "b"): b"2"}
    assert oct(path.stat().st_mode & 0o777) == "0o600"


def test_a_kill_loses_nothing_that_was_written(path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom scentd.state.allocation import AllocationFile\n"
        "f = AllocationFile(Path(sys.argv[1])); f.load()\n"
        "for i in range(10**6):\n f.save({('k', str(i), ''): b'x'})\n time.sleep(0.001)\n"
        " if i == 200: print('go', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        os.kill(writer.pid, signal.SIGKILL)
    rows = load(path)
    assert len(rows) > 50
    assert set(rows) == {("k", str(i), "") for i in range(len(rows))}


def test_a_disk_that_refuses_stops_nothing(path, caplog):
    path.parent.mkdir()
    path.mkdir()  # no database can be where a directory is
    file = AllocationFile(path)
    assert file.load() == {}
    file.save(ROWS)
    wait_for(lambda: file.failures >= 2)
    path.rmdir()
    file.save({})
    wait_for(lambda: "works again" in caplog.text or path.exists())
    file.close()
    assert load(path) == ROWS


def test_what_is_no_database_is_moved_aside(path, caplog):
    path.parent.mkdir()
    path.write_bytes(b"garbage" * 1000)
    assert load(path) == {}
    assert "and begun anew" in caplog.text
    assert [p.name.split("-")[0] for p in path.parent.iterdir() if "corrupt" in p.name] == ["allocation.db.corrupt"]


def test_a_newer_version_is_left_alone(path, caplog):
    path.parent.mkdir()
    with sqlite3.connect(path) as newer:
        newer.execute("PRAGMA user_version = 99")
    newer.close()
    assert load(path) == {}
    assert "is of version 99, and this scentd knows 1; move it away" in caplog.text
