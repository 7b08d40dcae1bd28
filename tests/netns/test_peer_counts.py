"""Whose packets were accepted, refused, absent or unstamped, and whose clock is wrong: by both packet paths.

a ---- 10.1.0.0/24, fd00:1::/64 ---- b      a has an identity and no daemon; b is strict
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import forge
import pytest
from compiled import bpffs
from edges import in_place, offloaded
from hosts import Node, acquainted, pair, peer_of, start, until

from scentd.control.status import PeerTraffic

pytestmark = pytest.mark.netns

BOTH = pytest.mark.parametrize("version", [4, 6])
NOBODYS = bytes.fromhex("5ce710") + bytes(9) + b"\x0a" + bytes(21)  # a scent of key id 0
STRANGER = {4: "10.1.0.9", 6: "fd00:1::9"}
AHEAD = 100  # seconds


@pytest.fixture(scope="module", params=["queue", "offload"])
def nodes(request, tmp_path_factory) -> Iterator[tuple[Node, Node]]:
    directory = tmp_path_factory.mktemp("pc")
    with ExitStack() as stack:
        a, b = stack.enter_context(pair("pc", directory, issues=False))
        if request.param == "offload":
            offloaded(stack.enter_context(bpffs(directory / "bpf")), b)
        for address in (f"{STRANGER[4]}/24", f"{STRANGER[6]}/64 nodad"):
            a.host.ip(f"addr add {address} dev {a.host.interfaces[0]}")
        b.network["source"] = [{"kind": "memory"}]
        b.peers = [peer_of(a, absent="drop", rejected="drop")]
        start(b)
        in_place(b)
        yield a, b


def traffic(b: Node, peer: str = "a") -> PeerTraffic:
    status = b.status()
    found = next((t for t in status["traffic"] if t["name"] == peer), status["strangers"])
    return PeerTraffic(**found)


def send(a: Node, b: Node, version: int, made: bytes | None, count: int = 1, source: str = "") -> None:
    """Datagrams to b with these bytes as their scent; None: without one."""
    with b.socket(version) as receiver, forge.connected(a, receiver.getsockname()[:2], source=source) as end:
        if made is not None:
            forge.attach(end, made)
        for _ in range(count):
            end.send(b"counted")


def send_scented(a: Node, b: Node, version: int, epoch: int) -> None:
    with b.socket(version) as receiver, forge.connected(a, receiver.getsockname()[:2]) as end:
        out = forge.issued(a.identity, b, epoch)
        made = forge.scent(end, receiver.getsockname()[:2], out)
        forge.attach(end, made)
        end.send(b"scented")


@BOTH
def test_accepted(nodes, version):
    a, b = nodes
    before, epoch = traffic(b), int(time.time())
    until(lambda: int(time.time()) > epoch, "an epoch of its own")
    for _ in range(3):
        send_scented(a, b, version, epoch + 1)
    until(lambda: traffic(b).accepted == before.accepted + 3, "three are counted")
    until(lambda: traffic(b).accepted_at != before.accepted_at, "the last one's time")
    found = traffic(b)
    assert found.carriers == ["ipv4-option", "ipv6-header"]
    assert abs(found.accepted_at - time.time()) < 5
    assert -1 <= found.clock_offset < 5
    assert not found.clock_refused


@BOTH
def test_refused(nodes, version):
    """The log names the peer, the reason and the way out, once."""
    a, b = nodes
    before = traffic(b)
    send(a, b, version, NOBODYS, 5)
    until(lambda: traffic(b).rejected.get("unknown-key", 0) == before.rejected.get("unknown-key", 0) + 5, "counted")
    until(lambda: "unknown-key: compare peer.public_key" in b.log.read_text(), "logged")
    send(a, b, version, NOBODYS)
    time.sleep(2.5)
    assert b.log.read_text().count("unknown-key: compare peer.public_key") == 1


@BOTH
def test_absent(nodes, version):
    a, b = nodes
    before = traffic(b)
    send(a, b, version, None, 4)
    # More than four: a answers the beacons of b, too.
    until(lambda: traffic(b).absent.get("drop", 0) >= before.absent.get("drop", 0) + 4, "counted")
    until(lambda: "of it without a scent were refused (drop)" in b.log.read_text(), "logged")


@BOTH
def test_a_clock_that_is_ahead(nodes, version):
    """Nobody has verified what the packet says of it, and status says so."""
    a, b = nodes
    before = traffic(b)
    send_scented(a, b, version, int(time.time()) + AHEAD)
    until(lambda: traffic(b).rejected.get("future", 0) == before.rejected.get("future", 0) + 1, "counted")
    until(lambda: traffic(b).clock_refused, "its clock")
    assert abs(traffic(b).clock_offset + AHEAD) < 5
    assert "s ahead of ours, by packets that nobody has verified" in b.cli("status").stdout


@BOTH
def test_strangers(nodes, version):
    a, b = nodes
    before, of_a = traffic(b, "nobody"), traffic(b)
    send(a, b, version, NOBODYS, 2, STRANGER[version])
    until(
        lambda: traffic(b, "nobody").rejected.get("unknown-key", 0) == before.rejected.get("unknown-key", 0) + 2,
        "counted",
    )
    assert traffic(b).rejected == of_a.rejected


@BOTH
def test_unstamped(nodes, version):
    """IPv4 options that leave no room, and an IPv6 datagram that is fragmented."""
    a, b = nodes
    reason = {4: "no-room", 6: "ipv6-fragment"}[version]
    before = traffic(b).unstamped.get(reason, 0)
    with a.socket(version) as receiver, forge.connected(b, receiver.getsockname()[:2]) as end:
        if version == 4:
            end.setsockopt(socket.IPPROTO_IP, forge.IP_OPTIONS, b"\x01" * 40)
        for _ in range(3):
            end.send(bytes(10 if version == 4 else 4000))
    until(lambda: traffic(b).unstamped.get(reason, 0) >= before + 3, "counted")
    until(lambda: f"left for it without a scent ({reason})" in b.log.read_text(), "logged")


def test_addresses_that_no_network_has(nodes):
    """What they send leaves without a scent, and is not counted: status and log say so."""
    _, b = nodes
    assert b.status()["uncovered"] == []
    b.host.ip(f"addr add 10.1.0.77/24 dev {b.host.interfaces[0]}")
    until(lambda: b.status()["uncovered"] == ["10.1.0.77"], "it is said")
    assert "what 10.1.0.77 sends leaves without a scent: network.addresses lacks it" in b.log.read_text()
    b.host.ip(f"addr del 10.1.0.77/24 dev {b.host.interfaces[0]}")
    until(lambda: b.status()["uncovered"] == [], "it has gone")


def test_metrics_and_a_reload(nodes):
    """Counts go on over a reload; metrics have them by peer. What is let in is what strict treatments would refuse."""
    a, b = nodes
    before = traffic(b)
    usual, b.peers = b.peers, [peer_of(a, absent="pass", rejected="pass")]
    b.reload()
    assert traffic(b).rejected == before.rejected
    send(a, b, 4, None, 2)
    send(a, b, 4, NOBODYS, 3)
    until(lambda: traffic(b).let_in >= before.let_in + 5, "let in")  # more: a answers beacons here, too
    said = b.cli("metrics").stdout
    assert (
        f'scentd_peer_rejected_total{{peer="a",reason="unknown-key"}} {traffic(b).rejected["unknown-key"]:.1f}' in said
    )
    assert 'scentd_peer_let_in_total{peer="a"}' in said
    assert 'peer="(strangers)"' in said
    b.peers = usual
    b.reload()


def test_a_restart_begins_anew(nodes):
    """The programs' maps go on, and the counts are this daemon's."""
    a, b = nodes
    b.kill()
    b.start()
    in_place(b)
    assert (traffic(b).accepted, traffic(b).rejected, traffic(b).absent) == (0, {}, {})
    send(a, b, 4, NOBODYS, 2)
    until(lambda: traffic(b).rejected == {"unknown-key": 2}, "counted")


def test_a_clock_shows_at_both_ends(tmp_path):
    """Each sees how far the two are apart. (Here they have one clock; test_a_clock_that_is_ahead has a wrong one.)"""
    with pair("pw", tmp_path) as (a, b):
        start(a, b)
        acquainted(a, b)
        acquainted(b, a)
        for node, other in ((a, b), (b, a)):
            until(lambda n=node, o=other: traffic(n, o.name).clock_offset is not None, "an offset")
            assert abs(traffic(node, other.name).clock_offset) < 5
        assert json.loads(a.cli("status", "--json").stdout)["traffic"][0]["name"] == "b"
