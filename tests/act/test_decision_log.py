import json
import logging
import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scentd.act.decision_log import DecisionLog, lines_backwards
from scentd.model import Decision


def decision(i, network="a", reason="cpu > 0.8 [cpu=0.9]"):
    return Decision(float(i), network, "p", i, "quarantine", "10.0.0.7", "free", "quarantined", reason)


def numbers(path):
    """The epochs in the file; fails if a line does not parse."""
    return [json.loads(line)["epoch"] for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "decisions.jsonl"


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 64 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    where = tmp_path / "disk"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(where)], check=True)
    yield where
    subprocess.run(["umount", str(where)], check=True)


def test_one_line_a_decision_at_once(path):
    log = DecisionLog(str(path))
    log.append([decision(1), decision(2)])
    log.append([decision(3)])
    assert numbers(path) == [1, 2, 3]
    assert json.loads(path.read_text().splitlines()[0]) == {
        "at": 1.0,
        "peer": "a",
        "policy": "p",
        "epoch": 1,
        "action": "quarantine",
        "target": "10.0.0.7",
        "before": "free",
        "after": "quarantined",
        "reason": "cpu > 0.8 [cpu=0.9]",
        "schema": 2,
    }
    assert log.counters()["decision_log_written"] == 3
    assert path.stat().st_mode & 0o777 == 0o640
    log.close()


def test_a_full_disk_loses_nothing_within_the_bound(small_disk, caplog):
    path, ballast = small_disk / "decisions.jsonl", small_disk / "ballast"
    log = DecisionLog(str(path), keep=200)
    log.append([decision(0)])
    free = os.statvfs(small_disk).f_bavail * 4096
    ballast.write_bytes(b"x" * (free - 4096))
    for i in range(1, 100):
        log.append([decision(i)])
    counts = log.counters()
    assert 0 < counts["decision_log_waiting"] < 99
    assert counts["decision_log_lost"] == 0
    assert counts["decision_log_errors"] > 1
    assert [r.levelno for r in caplog.records].count(logging.ERROR) == 1
    numbers(path)  # even now every line parses
    assert path.read_bytes().endswith(b"\n")
    assert [d.epoch for d in log.explain("a", 3)] == [99, 98, 97]
    ballast.unlink()
    log.flush()
    assert numbers(path) == list(range(100))
    assert log.counters()["decision_log_waiting"] == 0
    log.close()


def test_beyond_the_bound_the_oldest_are_lost_and_counted(tmp_path):
    log = DecisionLog(str(tmp_path / "missing" / "decisions.jsonl"), keep=10)
    for i in range(25):
        log.append([decision(i)])
    assert log.counters()["decision_log_lost"] == 15
    assert [d.epoch for d in log.explain(limit=100)] == list(range(24, 14, -1))
    (tmp_path / "missing").mkdir()
    log.append([decision(25)])
    assert numbers(tmp_path / "missing" / "decisions.jsonl") == list(range(15, 26))
    assert log.counters()["decision_log_lost"] == 15
    log.close()


def test_a_device_that_is_always_full_raises_nothing():
    log = DecisionLog("/dev/full")
    log.append([decision(1)])
    log.flush()
    log.close()
    assert log.counters() == {
        "decision_log_written": 0,
        "decision_log_waiting": 0,
        "decision_log_lost": 1,
        "decision_log_errors": 3,
    }


@pytest.mark.parametrize("torn", [b'{"at": 1.0, "netw', b"x" * 100_000, b'{"at":7.0,"network":"a"\xff'])
def test_what_a_crash_tore_is_taken_back(path, torn):
    DecisionLog(str(path)).append([decision(1)])
    path.write_bytes(path.read_bytes() + torn)
    log = DecisionLog(str(path))
    log.append([decision(2)])
    lines = path.read_bytes().splitlines()
    assert json.loads(lines[0])["epoch"] == 1
    assert json.loads(lines[-1])["epoch"] == 2
    assert [d.epoch for d in DecisionLog(str(path)).explain()] == [2, 1]


def test_a_whole_line_without_its_newline_is_kept(path):
    DecisionLog(str(path)).append([decision(1)])
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    DecisionLog(str(path)).append([decision(2)])
    assert numbers(path) == [1, 2]


def test_rotation_by_rename_and_by_reopen(path, tmp_path):
    log = DecisionLog(str(path))
    log.append([decision(1)])
    path.rename(tmp_path / "decisions.1")
    log.append([decision(2)])
    assert numbers(tmp_path / "decisions.1") == [1]
    assert numbers(path) == [2]
    path.unlink()
    log.reopen(str(path))
    log.append([decision(3)])
    assert numbers(path) == [3]
    log.close()


def test_explain_reads_memory_then_the_file_without_doubles(path):
    old = DecisionLog(str(path))
    old.append([decision(i, "ab"[i % 2]) for i in range(20)])
    old.close()
    log = DecisionLog(str(path), keep=5)
    log.append([decision(i, "ab"[i % 2]) for i in range(20, 30)])
    path.open("a").write("not ours\n")
    assert [d.epoch for d in log.explain("a", 100)] == list(range(28, -1, -2))
    assert [d.epoch for d in log.explain("", 12)] == list(range(29, 17, -1))
    assert [d.epoch for d in log.explain("b", 2)] == [29, 27]
    assert log.explain("nobody") == []
    assert log.explain("a", 1)[0] == decision(28, "a")
    log.close()


@given(st.lists(st.binary(max_size=40000).map(lambda b: b.replace(b"\n", b"")), max_size=8), st.booleans())
def test_lines_backwards(tmp_path_factory, lines, newline):
    path = tmp_path_factory.getbasetemp() / "lines"
    path.write_bytes(b"\n".join(lines) + (b"\n" if newline else b""))
    assert list(lines_backwards(str(path), 1 << 24)) == [line for line in reversed(lines) if line]


def test_lines_backwards_stops(path):
    path.write_bytes(b"first\n" + b"x" * 70000 + b"\nlast\n")
    assert list(lines_backwards(str(path), 1000)) == [b"last"]
    assert list(lines_backwards(str(path) + "nothing", 1000)) == []


def test_lines_of_an_older_version_are_still_explained(path):
    """Before schema 2 the peer was called network, and there was no schema."""
    log = DecisionLog(str(path))
    log.append([decision(1)])
    log.close()
    line = json.loads(path.read_text())
    del line["schema"]
    line["network"] = line.pop("peer")
    path.write_text(json.dumps({"at": line.pop("at"), "network": line.pop("network"), **line}))
    log = DecisionLog(str(path))
    assert [d.peer for d in log.explain("a")] == ["a"]
    log.append([decision(2)])
    assert len(path.read_text().splitlines()) == 2
