"""IPsec between the hosts: ESP of manual keys, for all that they say to one another.

Each is the other's peer, a strict one in transport mode. In a tunnel IPv6 has no scent inside.

a ---- 10.1.0.0/24, fd00:1::/64 ---- b
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from compiled import bpffs
from edges import grown, in_place, offloaded, strict, totals
from hosts import Node, acquainted, exchange, pair, peer_of, start, until
from kernel_features import aead, needs_esp

pytestmark = [pytest.mark.netns, needs_esp()]

BOTH = pytest.mark.parametrize("version", [4, 6])
DATAGRAMS = 40
CASES = [(mode, path) for mode in ("transport", "tunnel") for path in ("queue", "offload")]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def nodes(request, tmp_path_factory) -> Iterator[tuple[Node, Node]]:
    directory = tmp_path_factory.mktemp("es")
    mode, path = request.param
    with ExitStack() as stack:
        a, b = stack.enter_context(pair("es", directory))
        for version in (4, 6):
            encrypt(a, b, version, mode)
        if path == "offload":
            offloaded(stack.enter_context(bpffs(directory / "bpf")), a, b)
        for node, other in ((a, b), (b, a)):
            node.peers = [strict(other, rejected="drop") if mode == "transport" else peer_of(other)]
        start(a, b)
        in_place(a, b)
        acquainted(b, a)
        acquainted(a, b)
        yield a, b


def encrypt(a: Node, b: Node, version: int, mode: str) -> None:
    """Both directions between these addresses."""
    for number, (source, destination) in enumerate(((a, b), (b, a))):
        ends = f"src {source.address(version)} dst {destination.address(version)}"
        for node in (a, b):
            direction = "out" if node is source else "in"
            key = aead(f"{number + version:02x}" * 20)
            node.host.ip(
                f"xfrm state add {ends} proto esp spi {0x100 + number} reqid 1 mode {mode} {key}",
                f"xfrm policy add {ends} dir {direction} tmpl {ends} proto esp reqid 1 mode {mode}",
            )


def refused(node: Node) -> int:
    return sum(node.status()["rejected"].values())


@BOTH
def test_datagrams(nodes, version, request):
    """All arrive. A strict receiver gets only what has had a scent where it was judged."""
    a, b = nodes
    before, wrong = totals(a), (refused(a), refused(b))
    with a.socket(version) as one, b.socket(version) as other, b.capture() as wire:
        for n in range(DATAGRAMS):
            one.sendto(b"%d" % n, other.getsockname()[:2])
            assert other.recv(100) == b"%d" % n
            other.sendto(b"%d" % n, one.getsockname()[:2])
            assert one.recv(100) == b"%d" % n
        encrypted = [p for p in wire.packets() if len(p) > 60 and b"%d" % DATAGRAMS not in p]
    assert len(encrypted) >= DATAGRAMS
    until(lambda: grown(a, before).get("stamped", 0) >= DATAGRAMS, "a counts them")
    assert "unstamped:already" not in grown(a, before)
    if request.node.callspec.params["nodes"][0] == "tunnel" and version == 6:
        until(lambda: grown(a, before).get("unstamped:tunnelled", 0) >= DATAGRAMS, "a counts what goes into the tunnel")
    assert (refused(a), refused(b)) == wrong


@BOTH
def test_tcp(nodes, version):
    a, b = nodes
    with b.listener(version) as listening, a.socket(version, socket.SOCK_STREAM) as client:
        client.connect(listening.getsockname()[:2])
        with listening.accept()[0] as server:
            assert exchange(client, server, bytes(100_000)) == bytes(100_000)
            assert exchange(server, client, bytes(100_000)) == bytes(100_000)
