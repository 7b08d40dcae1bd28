"""The history on real disks: bounded, full, killed, foreign; and what it tells."""

import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from scentd.model import Applied, Decision, Effect, Profile, View
from scentd.state import history
from scentd.state.history import History


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "history.db"


def decision(number, peer="a"):
    return Decision(float(number), peer, "p", number, "amount", "r", "1", "2", "cpu > 0.8 [cpu=0.9]")


def view(epoch, peer="a", cpu=0.5):
    profile = Profile(peer, epoch, 5, cpu, {"cpu": cpu}, bytes(32))
    return View(peer, (profile,), float(epoch), cpu, 0.25, epoch)


def opened(path, size=64e6, age=1e12):
    return History(str(path), size, age)


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_it_tells_what_was_decided_and_what_became_of_it(path):
    kept = opened(path)
    kept.append([decision(1), decision(2, "b"), decision(3)])
    kept.applied(Applied("r", "a", 2.0, 0.5), 4.0)
    kept.effects([Effect(5.0, "a", "p", "r", "cpu", 0.9, 0.5, "fell")])
    found = kept.account("a", 10)
    assert found.decisions == [decision(3), decision(1)]
    assert found.applied == [(4.0, Applied("r", "a", 2.0, 0.5))]
    assert [e.trend for e in found.effects] == ["fell"]
    assert kept.account("a", 1).decisions == [decision(3)]
    assert kept.account("nobody", 10).decisions == []
    kept.close()
    again = opened(path)
    assert again.account("a", 10).decisions == [decision(3), decision(1)]
    assert oct(path.stat().st_mode & 0o777) == "0o640"
    again.close()


def test_recorded_views_come_back_with_what_was_known_before(path):
    kept = opened(path)
    kept.record([view(100), view(100, "b")], 100.0)
    kept.record([view(105, cpu=0.75)], 105.0)
    kept.close()
    seen = list(history.views(path, 0.0))
    assert [(v.peer, v.profile.epoch, len(v.profiles)) for v in seen] == [("a", 100, 1), ("b", 100, 1), ("a", 105, 2)]
    assert (seen[2].profile.levels, seen[2].received_at, seen[2].glance_threat) == ({"cpu": 0.75}, 105.0, 0.25)
    assert [v.profile.epoch for v in history.views(path, 101.0)] == [105]


def test_of_very_many_views_some_are_left_out_and_counted(path):
    kept = opened(path)
    kept.record([view(100, f"n{i}") for i in range(1000)], 100.0)
    kept.close()
    assert len(list(history.views(path, 0.0))) == history.VIEWS_A_SECOND
    assert kept.counters()["history_views_skipped"] == 1000 - history.VIEWS_A_SECOND


def test_the_file_does_not_grow_and_decisions_stay_longest(path, monkeypatch):
    monkeypatch.setattr(history, "TRIM", 1)
    monkeypatch.setattr(history, "VIEWS_A_SECOND", 100_000)
    kept = opened(path, size=2e6)
    kept.append([decision(i) for i in range(100)])
    for part in range(10):
        kept.record([view(100 + i, f"n{i}") for i in range(5000)], 100.0 + part)
        assert kept.settle(30)
    kept.close()
    assert path.stat().st_size < 4e6
    assert len(list(history.views(path, 0.0))) > 1000
    again = opened(path)
    assert len(again.account("a", 1000).decisions) == 100
    again.close()


def test_what_is_old_goes(path, monkeypatch):
    monkeypatch.setattr(history, "TRIM", 1)
    kept = opened(path, age=3600.0)
    kept.append([decision(1), decision(int(time.time()))])
    assert kept.settle()
    assert [d.epoch > 1 for d in kept.account("a", 10).decisions] == [True]
    kept.close()


def test_a_disk_that_refuses_stops_nothing_and_is_told_once(path, caplog, monkeypatch):
    monkeypatch.setattr(history, "RETRY", 0.05)
    monkeypatch.setattr(history, "WAITING_MAX", 10)
    path.parent.mkdir()
    path.mkdir()  # no database can be where a directory is
    kept = opened(path)
    kept.append([decision(i) for i in range(15)])
    wait_for(lambda: kept.counters()["history_errors"] > 2)
    assert kept.counters()["history_lost"] == 5
    assert [d.epoch for d in kept.account("a", 2).decisions] == [14, 13]
    path.rmdir()
    wait_for(lambda: kept.counters()["history_written"] == 10)
    assert caplog.text.count("kept in memory, and written when it works again") == 1
    kept.append([decision(99)])
    assert kept.account("a", 1).decisions[0].epoch == 99
    kept.close()


def test_a_kill_loses_what_was_not_committed(path):
    code = (
        "import sys, time\nfrom scentd.model import Decision\nfrom scentd.state.history import History\n"
        "h = History(sys.argv[1], 64e6, 1e12)\n"
        "for i in range(10**6):\n h.append([Decision(float(i), 'a', 'p', i, 'amount', 'r', '', '', '')])\n"
        " time.sleep(0.001)\n if i == 800: print('go', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        os.kill(writer.pid, signal.SIGKILL)
    kept = opened(path)
    found = [d.epoch for d in kept.account("a", 10_000).decisions]
    kept.close()
    assert len(found) > 100
    assert found == list(range(len(found)))[::-1]


@pytest.mark.parametrize("content", [b"garbage" * 1000, b'{"at": 1.0, "peer": "a"}\n' * 100])
def test_what_is_no_database_is_moved_aside(path, content, caplog):
    path.parent.mkdir()
    path.write_bytes(content)
    kept = opened(path)
    kept.append([decision(1)])
    assert kept.settle()
    kept.close()
    assert "and begun anew" in caplog.text
    assert [p.read_bytes() for p in path.parent.iterdir() if "corrupt" in p.name] == [content]


def test_a_newer_version_is_left_alone(path, caplog):
    path.parent.mkdir()
    with sqlite3.connect(path) as newer:
        newer.execute("PRAGMA user_version = 99")
    newer.close()
    kept = opened(path)
    kept.append([decision(1)])
    wait_for(lambda: kept.counters()["history_errors"])
    kept.close()
    assert "is of version 99, and this scentd knows 1; move it away" in caplog.text
