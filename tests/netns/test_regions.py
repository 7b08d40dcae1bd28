"""A slow path to one region, told by TCP's own numbers and by probes, in the profile at the peer.

b ---- a ~~~~ east      a speaks TCP with east over a wire that is slow and loses, and asks for policies of b's
"""

from __future__ import annotations

import pytest
from hosts import Node, acquainted, peer_of, start, until
from slow_wire import SlowWire, Talk
from topology import Topology

pytestmark = pytest.mark.netns

REGIONS = {"east": ["10.3.0.0/24", "fd00:3::/64"], "near": ["10.1.0.0/24"], "nobody": ["10.9.0.0/16"]}
TCP = {"kind": "tcp", "latency_full": "100ms", "jitter_full": "100ms", "retransmits_full": 0.05}
PROBE = {"kind": "probe", "targets": ["10.3.0.2", "10.1.0.2", "10.1.0.2:9"], "latency_full": "100ms"}
SLOW = "region=east;metric=latency;level=high"
LOST = "region=east;metric=retransmits;level=high"
FAST = "region=near;metric=latency;level=low"
DO = {"kind": "command", "argv": ["/bin/true"], "user": "root"}


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    directory = tmp_path_factory.mktemp("rg")
    with Topology("rg") as net:
        a, b = Node(net.host("a"), directory), Node(net.host("b"), directory)
        net.link(a.host, b.host, ipv4="10.1.0.0/24", ipv6="fd00:1::/64")
        east = net.host("east")
        a.peers, b.peers = [peer_of(b)], [peer_of(a)]
        a.network |= {"regions": REGIONS, "interval": "1s", "addresses": ["10.1.0.1", "fd00:1::1"]}
        b.sections["policy"] = [
            {"name": name, "when": f"has('{item}')", "do": DO, "matches": 2, "profiles": 3}
            for name, item in (("slow", SLOW), ("lost", LOST), ("fast", FAST), ("none", SLOW.replace("east", "nobody")))
        ]
        with a, b, SlowWire(net, a.host, east, ipv4="10.3.0.0/24", ipv6="fd00:3::/64") as wire:
            yield a, b, east, wire


def items(node):
    return set(node.status()["networks"][0]["items"])


def fired(node):
    return {p["policy"] for p in node.status()["allocation"]["policies"] if p["outcomes"].get("fired")}


def test_the_path_and_not_the_network_is_slow(net):
    a, b, east, wire = net
    a.network["source"] = [{"kind": "memory"}, TCP]
    start(a, b)
    acquainted(b, a)
    with Talk(a.host, east):
        until(lambda: "region=east;metric=latency;level=low" in items(a), "a fast path to east")
        wire.delay = 0.06
        until(lambda: SLOW in items(a), "east is slow")
        until(lambda: "slow" in fired(b), "b has it in two profiles of three")
        assert not any("nobody" in item for item in items(a))
        wire.delay, wire.lose = 0.001, 6
        until(lambda: LOST in items(a), "east loses")
        until(lambda: "lost" in fired(b), "b knows that, too")
        wire.lose = 0
        until(lambda: LOST not in items(a), "and no more")
    assert "none" not in fired(b)
    levels = a.status()["networks"][0]["levels"]
    assert set(levels) >= {"latency", "jitter", "retransmits"}


def test_probes_tell_of_a_quiet_path(net):
    a, b, _, wire = net
    a.network["source"] = [{"kind": "memory"}, PROBE]
    wire.delay = 0.001
    if not b.running():
        start(b)
    a.restart() if a.running() else start(a)
    until(lambda: {"region=east;metric=latency;level=low", FAST} <= items(a), "both paths are fast")
    assert any(item.startswith("region=east;metric=jitter") for item in items(a))
    wire.delay = 0.06
    until(lambda: {SLOW, FAST} <= items(a), "one is slow")
    until(lambda: "fast" in fired(b), "b knows the other one")
    wire.delay = 0.001
    until(lambda: SLOW not in items(a), "it is fast again")
    wire.lose = 1
    until(lambda: SLOW in items(a), "it is cut")
    counters = a.status()["networks"][0]["collectors"]
    assert counters["probe_lost"] >= 2
    assert counters["probe_sent"] >= 9
    wire.lose = 0
    until(lambda: SLOW not in items(a), "and whole again")


def test_probes_to_a_peer_have_its_scent(net):
    a, b, _, _ = net
    if a.network.get("source") != [{"kind": "memory"}, PROBE] or not a.running():
        a.network["source"] = [{"kind": "memory"}, PROBE]
        a.restart()
    if not b.running():
        start(b)
    before = b.status()["accepted"]
    with b.capture() as capture:
        until(
            lambda: any(packet[9] == 1 for packet in capture.packets() if packet[0] == 0x4E), "an echo with option 158"
        )
    until(lambda: b.status()["accepted"] > before, "b accepts them")
