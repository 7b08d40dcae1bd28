"""Shapes of links between two strict hosts: what one sends the other gets, and nothing is refused.

a ---- 10.1.0.0/24, fd00:1::/64 ---- b      over an interface of each kind on a veth, in both datapaths

Most kinds are in Debian's kernel and not in every other: `scripts/soak links` runs this file there.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from compiled import bpffs
from edges import grown, offloaded, strict, totals
from hosts import Node, acquainted, start, transfer, until
from steady import steady
from topology import Host, Topology

pytestmark = pytest.mark.netns

OUTER = ("192.0.2.1", "192.0.2.2")
BOTH_WAYS = [(4, False), (4, True), (6, False), (6, True)]  # version, whether b sends
NETEM = {
    "delay": "delay 20ms 8ms 25%",
    "loss": "loss 3%",
    "reordering": "delay 10ms reorder 25% 50%",
    "duplicates": "duplicate 10%",
    "corruption": "corrupt 2%",
}


def upper(kind: str) -> Callable[[list[Host], list[str]], str]:
    """An interface of one kind on top of each veth; `{own}` and `{other}` are the outer addresses."""

    def make(hosts: list[Host], below: list[str]) -> str:
        for host, end, own, other in zip(hosts, below, OUTER, OUTER[::-1], strict=True):
            host.ip(f"addr add {own}/24 dev {end}", f"link add over {kind.format(own=own, other=other, end=end)}")
        return "over"

    return make


def bond(hosts: list[Host], below: list[str]) -> str:
    for host, end in zip(hosts, below, strict=True):
        host.ip("link add over type bond mode active-backup", f"link set {end} down", f"link set {end} master over")
    return "over"


def wireguard(hosts: list[Host], below: list[str]) -> str:
    upper("type wireguard")(hosts, below)
    secrets = [host.out("wg", "genkey").strip() for host in hosts]
    publics = [host.run("wg", "pubkey", input=key).stdout.strip() for host, key in zip(hosts, secrets, strict=True)]
    for host, secret, public, other in zip(hosts, secrets, publics[::-1], OUTER[::-1], strict=True):
        setting = ("listen-port", "51820", "private-key", "/dev/stdin", "peer", public)
        host.run(
            "wg", "set", "over", *setting, "endpoint", f"{other}:51820", "allowed-ips", "0.0.0.0/0,::/0", input=secret
        )
    return "over"


def impaired(how: str) -> Callable[[list[Host], list[str]], str]:
    def make(hosts: list[Host], below: list[str]) -> str:
        for host, end in zip(hosts, below, strict=True):
            host.run("tc", "qdisc", "add", "dev", end, "root", "netem", *how.split())
        return ""

    return make


LINKS: dict[str, Callable[[list[Host], list[str]], str]] = {
    "vlan": upper("link {end} type vlan id 7"),
    "macvlan": upper("link {end} type macvlan mode bridge"),
    "vxlan": upper("type vxlan id 7 local {own} remote {other} dstport 4789"),
    "geneve": upper("type geneve id 7 remote {other}"),
    "gre": upper("type gre local {own} remote {other}"),
    "bond": bond,
    "wireguard": wireguard,
    **{f"netem {name}": impaired(how) for name, how in NETEM.items()},
}


def missing(kind: str) -> str:
    """What this kernel lacks for a kind of link; empty if nothing. It is tried in a namespace of its own."""
    with Topology("lm") as net:
        hosts = [net.host("a"), net.host("b")]
        ends = net.link(*hosts)
        try:
            LINKS[kind](hosts, list(ends))
        except (AssertionError, subprocess.CalledProcessError, FileNotFoundError) as error:
            return str(error)
    return ""


@pytest.fixture(scope="module", params=[(k, d) for k in LINKS for d in ("queue", "offload")], ids=" ".join)
def ends(request, tmp_path_factory) -> Iterator[tuple[Node, Node, str]]:
    kind, datapath = request.param
    if lacks := missing(kind):
        pytest.skip(f"not on this kernel (scripts/soak links): {lacks}")
    directory = tmp_path_factory.mktemp("ln")
    with ExitStack() as stack:
        net = stack.enter_context(Topology("ln"))
        a, b = (Node(net.host(name), directory) for name in "ab")
        below = net.link(a.host, b.host)
        interface = LINKS[kind]([a.host, b.host], list(below))
        for number, (node, end) in enumerate(zip((a, b), below, strict=True), start=1):
            if interface:
                node.host.ip(f"link set {interface} up")
            net.address(node.host, interface or end, number, "10.1.0.0/24", "fd00:1::/64")
        for node, other in ((a, b), (b, a)):
            node.peers = [strict(other, rejected="drop")]
        if datapath == "offload":
            offloaded(stack.enter_context(bpffs(directory / "bpf")), a, b)
        with a, b:
            start(a, b)
            acquainted(a, b)
            acquainted(b, a)
            yield a, b, kind


@pytest.mark.parametrize(("version", "back"), BOTH_WAYS)
def test_what_is_sent_arrives(ends, version, back):
    a, b, kind = ends
    sender, receiver = (b, a) if back else (a, b)
    before = totals(receiver)
    with steady(sender, receiver, version) as stream:
        transfer(sender, receiver, version, 1 << 18)
        until(lambda: stream.sent > 100, "a hundred datagrams")
    if kind not in ("netem loss", "netem corruption"):
        assert not stream.lost
    assert len(stream.got) > 80
    if kind != "netem corruption":  # what is broken on the way is refused
        wrong = [name for name in grown(receiver, before) if name.startswith("rejected") or name.endswith("drop")]
        assert set(wrong) <= {"treated:accepted:drop"}, "that one is a beacon"
