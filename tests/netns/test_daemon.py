"""The daemon's life: kills, hangs, restarts, stops, and what the host looks like afterwards.

a ---- b      a stamps with fail = "open", b verifies with fail = "closed" or "open"
"""

from __future__ import annotations

import os
import signal
import sys
import time

import forge
import pytest
from hosts import Node, acquainted, alive, answered, environment, pair, peer_of, start, until
from steady import steady

pytestmark = pytest.mark.netns

STATE = (
    ("iptables-save", "-t", "raw"),
    ("iptables-save", "-t", "security"),
    ("ip6tables-save", "-t", "raw"),
    ("ip6tables-save", "-t", "security"),
    ("ip", "rule"),
    ("ip", "-6", "rule"),
    ("ip", "route", "show", "table", "all"),
    ("ip", "-6", "route", "show", "table", "all"),
    ("nft", "list", "tables"),
    ("tc", "qdisc", "show"),
)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    with pair("dm", tmp_path_factory.mktemp("dm")) as (a, b):
        for node in (a, b):  # the tables exist beforehand, with a rule of somebody else's
            for program in ("iptables", "ip6tables"):
                node.host.run(program, "-t", "raw", "-A", "OUTPUT", "-p", "udp", "--dport", "9", "-j", "ACCEPT")
                node.host.run(program, "-t", "security", "-A", "INPUT", "-p", "tcp", "--dport", "9", "-j", "DROP")
        b.sections["policy"] = [{"name": "isolate", "when": "threat > 0.9", "do": {"kind": "quarantine"}}]
        for node in (a, b):
            node.before, node.routes_before = snapshot(node), main_routes(node)
        start(a, b)
        acquainted(b, a)
        acquainted(a, b)
        yield a, b


@pytest.fixture
def both(nodes):
    """Both daemons run, with the settings that the module began with."""
    for node in nodes:
        if not node.running():
            node.start()
    return nodes


def snapshot(node: Node) -> dict[tuple[str, ...], str]:
    """What the host has of rules, routes, sets and queues; counters and dates left out."""
    kept = {}
    for argv in STATE:
        lines = node.host.out(*argv).splitlines()
        kept[argv] = "\n".join(line.split(" [")[0] for line in lines if not line.startswith("#"))
    return kept


def main_routes(node: Node) -> str:
    return node.host.out("ip", "route") + node.host.out("ip", "-6", "route")


def works(a: Node, b: Node, seconds: float = 1.0) -> bool:
    with a.socket(4) as sender, b.socket(4) as receiver:
        return answered(sender, receiver, seconds=seconds)


def test_the_main_table_is_not_touched(both):
    for node in both:
        assert main_routes(node) == node.routes_before
        assert "22600" in node.host.out("ip", "rule")


def test_a_second_daemon_is_refused(both):
    """Same socket, or another socket and the same queues: one line, and the first one is not disturbed."""
    a, b = both
    done = a.cli("run")
    assert done.returncode == 1
    assert "another scentd is running" in done.stderr
    assert "Traceback" not in done.stderr
    config = a.config.read_text()
    other = a.directory / "other.toml"
    other.write_text(config.replace("control.sock", "other.sock").replace("eve.sock", "other-eve.sock"))
    done = a.host.run(*argv_of_run(other), check=False, env=environment())
    assert done.returncode == 1
    assert "cannot bind NFQUEUE 22600" in done.stderr
    assert "Traceback" not in done.stderr
    assert a.status()["workers"]
    assert works(a, b)


def argv_of_run(config) -> list[str]:
    return [sys.executable, "-m", "scentd", "run", "--config", str(config)]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "ended"])
def test_a_worker_that_ends_is_started_anew(both, number):
    """Invariant 6, the packet path's own part: counted, and traffic resumes; totals do not go back."""
    a, b = both
    before = b.status()
    os.kill(before["workers"][0], number)
    after = until(lambda: (s := b.status())["workers"] != before["workers"] and s, "another worker")
    assert after["worker_restarts"] == before["worker_restarts"] + 1
    assert not alive(before["workers"][0])
    until(lambda: works(a, b), "traffic resumes")
    until(lambda: b.status()["accepted"] > before["accepted"], "the counters go on")


def test_a_worker_that_hangs_is_ended(both):
    """SIGSTOP: neither the kernel's bypass nor fail-open helps; after 10 s without a report it is replaced."""
    a, b = both
    before = b.status()
    os.kill(before["workers"][0], signal.SIGSTOP)
    assert not works(a, b, 0.3)
    until(lambda: b.status()["worker_restarts"] > before["worker_restarts"], "it is replaced", 25)
    until(lambda: works(a, b), "traffic resumes")
    assert not alive(before["workers"][0])


def test_open_and_closed_without_a_daemon(both):
    """kill -9 of a's daemon (stamp.fail = open): packets leave unscented. Of b's (verify.fail = closed): none enter."""
    a, b = both
    a.kill()
    assert works(a, b), "absent = pass: unscented packets are let in"
    a.start()
    b.kill()
    assert not works(a, b, 0.5)
    assert b.host.run("ip", "rule").stdout.count("22600"), "the rules are still there"
    b.start()
    until(lambda: works(a, b), "the restart takes over what was left")


def test_fail_open_at_the_verifier(both):
    a, b = both
    b.sections["verify"] = {"fail": "open"}
    b.restart()
    b.kill()
    assert works(a, b), "scented packets come in unverified: the option is skipped by the stack"
    del b.sections["verify"]
    b.start()
    until(lambda: works(a, b), "and verified again")


def test_closed_at_the_stamper(both):
    a, b = both
    a.sections["stamp"] = {"fail": "closed"}
    a.restart()
    until(lambda: works(a, b), "with the daemon it works")
    a.kill()
    with a.socket(4) as sender, b.socket(4) as receiver:
        assert not answered(sender, receiver, seconds=0.5)
    del a.sections["stamp"]
    a.start()
    until(lambda: works(a, b), "the restart takes over what was left")


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_no_replay_window_after_a_restart(both, end):
    """Invariant 8: what was accepted as the highest epoch before a restart, or kill -9, is the lowest after it."""
    a, b = both
    a.stop()
    now = max(int(time.time()), b.epoch(a))
    old, before, new = (forge.issued(a.identity, b, now + n) for n in (1, 2, 3))
    with b.socket(4) as receiver:
        to = receiver.getsockname()[:2]
        with forge.connected(a, to) as end_, forge.connected(a, to) as captured, forge.connected(a, to) as late:
            for sender, issued in ((captured, old), (late, before), (end_, new)):
                forge.attach(sender, forge.scent(sender, to, issued))
            assert answered(late, receiver)
            time.sleep(1.1)  # of epochs that are first seen in one second the one before them all has the grace
            assert answered(end_, receiver)
            getattr(b, end)()
            b.sections["verify"] = {"grace": "30s"}  # for the epoch before the highest, as without a restart
            b.start()
            del b.sections["verify"]
            assert b.epoch(a) == now + 3
            assert answered(late, receiver)
            replayed = b.status()["rejected"]["replayed-epoch"]
            receiver.settimeout(0.3)
            captured.send(b"old")
            with pytest.raises(TimeoutError):
                receiver.recv(100)
            until(lambda: b.status()["rejected"]["replayed-epoch"] == replayed + 1, "it is counted")


def test_an_epoch_is_not_issued_again_after_kill(both):
    """Invariant 8 at the sender: an epoch is a nonce, so a restart in the same second issues a higher one."""
    a, _ = both
    epoch = a.status()["networks"][0]["epoch"]
    a.kill()
    a.start()
    assert a.status()["networks"][0]["epoch"] > epoch


def test_cleanup_after_kill(both):
    """Invariant 7: cleanup after a crash removes all that is ours and nothing else; the second time it is harmless."""
    _, b = both
    b.kill()
    assert snapshot(b) != b.before
    for _ in range(2):
        done = b.cli("cleanup")
        assert done.returncode == 0, done.stderr
        assert snapshot(b) == b.before


def test_cleanup_leaves_the_rules_after_a_crash_if_asked_to(both):
    """ExecStopPost=: systemd starts it again."""
    _, b = both
    b.kill()
    there = snapshot(b)
    env = {**environment(), "SERVICE_RESULT": "signal"}
    argv = argv_of_run(b.config)[:3]
    done = b.host.run(*argv, "cleanup", "--unless-restarting", "none.service", "--config", str(b.config), env=env)
    assert "stays until it is back" in done.stderr
    assert snapshot(b) == there


def test_a_clean_stop_leaves_nothing(both):
    """Invariant 7: rules, sets, routes, tables and qdiscs are what they were; the files that stay are named."""
    for node in both:
        workers = node.status()["workers"]
        assert node.stop() == 0
        assert snapshot(node) == node.before
        assert not any(map(alive, workers))
        assert not node.control.exists()
        assert not node.eve.exists()
        left = {p.name for p in node.directory.iterdir()} - {"key", "scentd.toml", "other.toml", "log"}
        assert left <= {"epochs", "history.db", "allocation.db"}


def test_stop_and_start_under_traffic(both):
    """After a stop packets flow unscented, after a start scented; both = open loses only what was in the queue."""
    a, b = both
    b.peers = [peer_of(a)]
    b.restart()
    with steady(a, b, 6, 0.005) as stream:
        a.restart()
    assert len(stream.lost) <= 2, stream.lost
    assert stream.sent > 100


def test_there_was_no_defect(both):
    """Invariant 4: all of the above went without an exception, on the packet path or elsewhere."""
    for node in both:
        assert node.status()["other"]["internal_errors"] == 0
        assert "Traceback" not in node.log.read_text(), node.log.read_text()[-3000:]
