"""Narrow paths, on which sockets cannot leave room for a scent: TCP announces shorter segments, and never stands still.

a ---- b      IPv6 over 1280 and 1310 bytes (no socket goes below 1280), IPv4 over 576 and 600 (no route goes below 576)

Each end drops what has no scent: a packet that did not fit with its scent would be lost for good.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from compiled import bpffs
from edges import in_place, strict, switch
from hosts import Node, acquainted, pair, peer_of, start, transfer, until
from topology import Topology

pytestmark = pytest.mark.netns

OVERHEAD = {4: 36, 6: 40}
NARROW = [(6, 1280), (6, 1310), (4, 576), (4, 600)]  # IP version, bytes
ALIKE = [(offload, offload, *path) for offload in (False, True) for path in NARROW]
MIXED = [(not receives, receives, *path) for receives in (False, True) for path in ((6, 1280), (4, 576))]
BY = {False: "queue", True: "offload"}


def narrow(node: Node, mtu: int) -> None:
    """Let the node's link carry so many bytes; under 1280 the kernel takes IPv6 off it."""
    node.host.ip(f"link set {node.host.interfaces[0]} mtu {mtu}")
    if mtu < 1280:
        node.host.ipv6 = ""


def meet(*nodes: Node) -> None:
    """Start them, and wait until all know each other."""
    start(*nodes)
    in_place(*nodes)
    for one in nodes:
        for other in nodes:
            if one is not other:
                acquainted(one, other)


@contextmanager
def ends(directory: Path, mtu: int, sends: bool, receives: bool) -> Iterator[tuple[Node, Node]]:
    """Two strict hosts on a narrow link; whether a and b have the offload."""
    with ExitStack() as stack:
        bpf = stack.enter_context(bpffs(directory / "bpf")) if sends or receives else None
        a, b = stack.enter_context(pair("ms", directory))
        for node, offload in ((a, sends), (b, receives)):
            narrow(node, mtu)
            node.pin_dir = bpf / node.name if bpf and offload else None
        a.peers, b.peers = [strict(b)], [strict(a)]
        yield a, b


def assert_flows(one: Node, other: Node, version: int, mtu: int) -> None:
    """TCP at full size: it arrives, so all of it was scented."""
    before = one.status()["unstamped"]["too-big"], other.status()["absent"]
    with other.capture() as wire:
        transfer(one, other, version)
        longest = max(map(len, wire.packets()))
    if one.pin_dir is None:  # a program's large sends are whole on this wire
        assert mtu - OVERHEAD[version] < longest <= mtu
    assert (one.status()["unstamped"]["too-big"], other.status()["absent"]) == before


@pytest.mark.parametrize(
    ("sends", "receives", "version", "mtu"),
    ALIKE + MIXED,
    ids=[f"{BY[s]} to {BY[r]}, IPv{v} {mtu}" for s, r, v, mtu in ALIKE + MIXED],
)
def test_tcp_on_a_narrow_link(tmp_path, sends, receives, version, mtu):
    with ends(tmp_path, mtu, sends, receives) as (a, b):
        meet(a, b)
        assert_flows(a, b, version, mtu)
        assert_flows(b, a, version, mtu)


@pytest.mark.parametrize("offload", [False, True], ids=["queue", "offload"])
def test_a_host_that_only_stamps(tmp_path, offload):
    """It lowers what the peer's SYN-ACKs announce, though it judges nothing; the peer does not stamp."""
    with ends(tmp_path, 1280, sends=offload, receives=False) as (a, b):
        a.peers = [peer_of(b, verify=False)]
        b.peers = [strict(a, stamp=False)]
        start(a, b)
        in_place(a, b)
        acquainted(b, a)
        assert_flows(a, b, 6, 1280)


@pytest.mark.parametrize("offload", [False, True], ids=["queue", "offload"])
def test_a_narrow_link_behind_a_router_is_learnt(tmp_path, offload):
    """Nobody knows of it before a router says so: what TCP then announces has room, by whichever path it goes.

    The connection to which the router says it stands still: IPv6 goes below 1280 bytes for nobody.
    """
    with ExitStack() as stack:
        bpf = stack.enter_context(bpffs(tmp_path / "bpf"))
        net = stack.enter_context(Topology("ml"))
        a, b = Node(net.host("a"), tmp_path), Node(net.host("b"), tmp_path)
        router = net.host("r", forward=True)
        net.link(a.host, router, ipv6="fd00:1::/64")
        net.link(b.host, router, ipv6="fd00:2::/64", mtu=1300)
        for node, gateway in ((a, "fd00:1::2"), (b, "fd00:2::2")):
            node.host.ip(f"route add default via {gateway}")
            switch(node.host, node.host.interfaces[0], tso=False, gso=False)
            node.pin_dir = bpf / node.name if offload else None
        b.host.ip(f"link set {b.host.interfaces[0]} mtu 1500")  # it does not know, either
        a.peers, b.peers = [strict(b)], [strict(a)]
        with a, b:
            meet(a, b)
            until(lambda: flows(a, b), "a later connection has room", 40)
            assert_flows(a, b, 6, 1300)


def flows(one: Node, other: Node) -> bool:
    """Whether a new connection gets anywhere with full packets."""
    with suppress(AssertionError):
        transfer(one, other, 6, 1 << 16, patience=2)
        return True
    return False
