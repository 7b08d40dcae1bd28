"""Daemons come and go without the offload: nothing is lost, nothing leaves unscented, nothing unverified comes in.

a ---- 10.1.0.0/24, fd00:1::/64 ---- b        each the other's peer, both drop what has no scent; each has a guard
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from edges import strict
from flows import Flows
from guarded import Guarded, guarded
from hosts import Node, acquainted, answered, pair, start, until

# Alone: packets wait for 5 s, and beside other tests a start may take longer.
pytestmark = [pytest.mark.netns, pytest.mark.alone]

SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
BUFFER = 1 << 28  # bytes, so that the test itself loses nothing
ENDS = pytest.mark.parametrize("end", [0, 1], ids=["the sender's", "the receiver's"])


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Iterator[tuple[Node, Node, list[Guarded]]]:
    with pair("gu", tmp_path_factory.mktemp("gu")) as (a, b), guarded(a, b) as guards:
        for node, other in ((a, b), (b, a)):
            node.network["interval"] = "10s"
            node.peers = [strict(other, rejected="drop")]
            node.leaving = True
            # What one end has kept comes to the other in one burst, for which its queue must have room.
            node.sections["datapath"] = {"queue_length": 65536}
        start(a, b)
        acquainted(b, a)
        acquainted(a, b)
        yield a, b, guards


@ENDS
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL])
def test_a_successor_takes_over(both, end, number):
    a, b, guards = both
    node = (a, b)[end]
    with Flows(a, b):
        node.end(number)
        node.launch()
        node.wait_started()
    told = guards[end].tell()
    assert (told.orphans, told.verifying, told.closed) == ({}, True, True)


@ENDS
def test_ten_thousand_packets_a_second_wait_for_three_seconds(both, end):
    a, b, guards = both
    node = (a, b)[end]
    given_up = guards[end].tell().given_up
    with a.socket(4) as one, b.socket(4) as other:
        one.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER)
        other.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        other.setblocking(False)
        one.connect(other.getsockname())
        sending = Sending(one)
        sending.start()
        time.sleep(0.5)
        node.end(signal.SIGKILL)
        time.sleep(2.0)
        node.launch()
        until(lambda: not guards[end].tell().orphans, "what waited has gone on")
        node.wait_started()
        sending.stopped.set()
        sending.join()
        got: set[bytes] = set()
        until(lambda: received_all(other, got, sending.sent), f"all of {sending.sent} arrive")
    assert sending.sent > 20000
    assert guards[end].tell().given_up == given_up


class Sending(threading.Thread):
    """10,000 numbered datagrams a second, as well as this machine keeps the time."""

    def __init__(self, one: socket.socket) -> None:
        super().__init__(name="ten thousand")
        self.one = one
        self.sent = 0
        self.stopped = threading.Event()

    def run(self) -> None:
        begun = time.monotonic()
        while not self.stopped.wait(0.001):
            while self.sent < (time.monotonic() - begun) * 10000:
                self.one.send(self.sent.to_bytes(4, "big"))
                self.sent += 1


def received_all(other: socket.socket, got: set[bytes], sent: int) -> bool:
    with suppress(BlockingIOError):
        while True:
            got.add(other.recv(100))
    return len(got) == sent


# -- a guard, and no daemon ----------------------------------------------------


@pytest.fixture
def alone(tmp_path) -> Iterator[tuple[Node, Node, Guarded]]:
    """A strict receiver b with a guard, whose daemon the test ends. a has no daemon, so nothing of it has a scent."""
    with pair("ga", tmp_path, issues=False) as (a, b):
        b.network.pop("source", None)
        b.peers = [strict(a, rejected="drop")]
        b.leaving = True
        b.sections["guard"] = {"exception": exceptions_for(a)}
        with guarded(b) as (guard,):
            b.start()
            until(lambda: guard.tell().verifying, "b verifies")
            yield a, b, guard


def exceptions_for(a: Node) -> list[dict]:
    return [
        entry
        for address in a.addresses
        for entry in (
            {"prefix": address, "protocol": "tcp", "port": 22, "direction": "in"},
            {"prefix": address, "protocol": "udp", "port": 123, "direction": "out"},
        )
    ]


def reaches(one: Node, other: Node, version: int, kind: int = socket.SOCK_DGRAM, port: int = 0) -> bool:
    """Whether something unscented arrives: a datagram, or a connection to this port."""
    if kind == socket.SOCK_DGRAM:
        with one.socket(version) as sender, other.socket(version) as receiver:
            return answered(sender, receiver, seconds=0.3)
    with other.socket(version, kind, bind=False) as listening, one.socket(version, kind) as sender:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((other.address(version), port))
        listening.listen()
        sender.settimeout(0.7)
        with suppress(OSError):
            sender.connect((other.address(version), port))
            return True
    return False


def asks(one: Node, other: Node, version: int, port: int) -> bool:
    """Whether `one` gets an answer from a port of the other."""
    with one.socket(version) as asking, other.socket(version, bind=False) as server:
        server.bind((other.address(version), port))
        asking.sendto(b"time?", server.getsockname()[:2])
        _, source = server.recvfrom(100)
        server.sendto(b"now", source)
        asking.settimeout(0.5)
        with suppress(OSError):
            return asking.recv(100) == b"now"
    return False


def reached(a: Node, b: Node) -> bool:
    return any(reaches(a, b, version) for version in (4, 6))


def flush_rules(node: Node) -> None:
    node.host.run("nft", "flush", "ruleset")
    for program in ("iptables", "ip6tables"):
        node.host.run(program, "-t", "raw", "-F")


def test_closed_stays_closed_without_a_daemon(alone):
    """Verifying, killed, given up, rules flushed, cleaned up as by ExecStopPost=, the guard started anew."""
    a, b, guard = alone
    assert not reached(a, b)
    flush_rules(b)
    assert not reached(a, b), "rules flushed under a running daemon"
    b.kill()
    flush_rules(b)
    assert not reached(a, b), "killed, without rules"
    until(lambda: not guard.tell().orphans, "what waited is given up")
    assert not reached(a, b)
    done = b.cli("cleanup", "--unless-restarting", "none.service")
    assert done.returncode == 0, done.stderr
    assert "SCENTD" not in b.host.out("iptables", "-S", "-t", "raw")
    assert not reached(a, b), "stopped"
    guard.stop()
    guard.start()
    assert not reached(a, b), "after the guard's own start, as after a boot"
    assert guard.tell().dropped
    done = b.cli("cleanup")
    assert "nothing is closed" in done.stderr
    assert reached(a, b), "opened by `scentd cleanup`"
    guard.stop()
    guard.start()
    assert reached(a, b), "and it stays open"


def test_exceptions_hold_only_while_nobody_verifies(alone):
    a, b, guard = alone
    for version in (4, 6):
        assert not reaches(a, b, version, socket.SOCK_STREAM, 22)
        assert not asks(b, a, version, 123)
    b.kill()
    until(lambda: not guard.tell().orphans, "what waited is given up")
    b.cli("cleanup", "--unless-restarting", "none.service")
    for version in (4, 6):
        assert reaches(a, b, version, socket.SOCK_STREAM, 22)
        assert not reaches(a, b, version, socket.SOCK_STREAM, 23)
        assert asks(b, a, version, 123)
        assert not asks(b, a, version, 124)
    assert not reached(a, b)
    assert guard.tell().excepted
    with a.socket(4, bind=False) as forged, b.socket(4) as receiver:
        forged.bind((a.host.ipv4, 123))
        assert not answered(forged, receiver, seconds=0.3), "the source port alone is no reason"


def test_what_others_may_do_to_the_table(alone):
    """Nobody else can delete it, and a saved copy of it blocks no restore."""
    _, b, guard = alone
    saved = b.host.out("nft", "list", "ruleset")
    name = next(line.split()[2] for line in saved.splitlines() if "scentd_closed" in line)
    assert b.host.run("nft", "delete", "table", "inet", name, check=False).returncode
    assert "scentd_closed" in b.host.out("nft", "list", "ruleset")
    guard.stop()
    guard.start()
    until(lambda: guard.tell().verifying, "the daemon has found the new guard")
    text = "flush ruleset\n" + "\n".join(line for line in saved.splitlines() if "progname" not in line)
    b.host.run("nft", "-f", "-", input=text, check=False)
    assert guard.tell().closed


@pytest.mark.parametrize("fail", ["open", "closed"])
def test_a_daemon_that_does_not_come_back_is_no_black_hole(tmp_path, fail):
    """What waits at the sender leaves, or is dropped, as stamp.fail says, and so does what comes after it."""
    with pair("gh", tmp_path) as (a, b), guarded(a) as (guard,):
        a.sections["stamp"] = {"fail": fail}
        a.leaving = True
        b.network.pop("source", None)
        start(a)
        with a.socket(4) as sender, b.socket(4) as receiver:
            a.end(signal.SIGTERM)
            assert not answered(sender, receiver, b"waits", 0.3)
            assert guard.tell().waiting == 1
            receiver.settimeout(10)
            if fail == "open":
                assert receiver.recv(100) == b"waits"
            until(lambda: not guard.tell().orphans, "the guard has given up")
            assert answered(sender, receiver, b"later", 0.3) == (fail == "open")
        told = guard.tell()
        assert (told.given_up, told.waiting) == (1, 0)


def test_a_worker_alone_that_dies_gets_a_successor(both):
    a, b, guards = both
    for node in (a, b):
        (pid,) = node.status()["workers"]
        os.kill(pid, signal.SIGKILL)
        until(lambda node=node, pid=pid: pid not in node.status()["workers"], "a new worker")
    until(lambda: reached(a, b), "packets are accepted")
    assert not any(guard.tell().orphans for guard in guards)


def test_two_ends_in_a_row(both):
    """A second daemon ends while packets still wait for the first one's rules."""
    a, b, guards = both
    with Flows(a, b):
        for number in (signal.SIGKILL, signal.SIGKILL):
            a.end(number)
            a.launch()
            a.wait_started()
    assert guards[0].tell().given_up == 0


def test_strangers_are_cut_off(both):
    """Whatever is no order ends the connection, and the guard goes on."""
    _, _, guards = both
    for data in (b"", b"{}", b"\0" * 70000, b'{"type":"Hold","queue":22600,"fail_open":true}'):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as end:
            end.settimeout(5)
            end.connect(guards[1].socket)
            with suppress(OSError):  # longer than a message may be
                end.send(data)
                assert end.recv(100) == b""
    assert guards[1].tell().verifying
    assert Path(guards[1].socket).stat().st_mode & 0o077 == 0
