"""Scents beside what shapes and copies packets: nothing is verified twice or not at all, nothing passes unshaped.

a ---- 10.1.0.0/24, fd00:1::/64 ---- b: each strict with the other; b shapes both ways, and watches a
"""

from contextlib import ExitStack, closing

import pytest
from compiled import bpffs
from edges import CLSACT_ONLY, in_place, offloaded
from hosts import acquainted, pair, peer_of, start
from scapy.utils import rdpcap
from shaping import MBIT, InHost, bandwidth, setting, streams

from scentd.act.resources.monitor import MonitorBackend, MonitorResource
from scentd.prefix import prefixes

pytestmark = pytest.mark.netns


@pytest.fixture(params=["queue", "tcx", "clsact"])
def nodes(request, tmp_path):
    with ExitStack() as stack:
        a, b = stack.enter_context(pair("sh", tmp_path))
        if request.param != "queue":
            offloaded(stack.enter_context(bpffs(tmp_path / "bpf")), a, b)
        if request.param == "clsact":
            a.program = b.program = CLSACT_ONLY
        strict = {"absent": "drop", "rejected": "drop"}
        a.peers, b.peers = [peer_of(b, **strict)], [peer_of(a, **strict)]
        start(a, b)
        in_place(a, b)
        acquainted(a, b)
        acquainted(b, a)
        yield a, b


def counts(node):
    [traffic] = node.status()["traffic"]
    return traffic["accepted"], traffic["absent"], sum(traffic["rejected"].values())


def test_shaped_and_watched_packets_are_verified_once(nodes, tmp_path):
    a, b = nodes
    peers = {"a": prefixes(a.addresses)}
    watching = MonitorResource(
        name="closer", pcap_directory=str(tmp_path), mirror_to="mon0", interfaces=[b.host.interfaces[0]]
    )
    with (
        bandwidth(b.host, peers=peers, direction="in") as inward,
        bandwidth(b.host, peers=peers) as outward,
        closing(InHost(b.host, MonitorBackend(watching, setting(peers)))) as closer,
    ):
        b.host.ip("link add mon0 type veth peer name copies", "link set mon0 up", "link set copies up")
        before = counts(b)
        inward.change(a=8 * MBIT)
        outward.change(a=8 * MBIT)
        closer.change(a=1)
        for family in (4, 6):
            for way in ((a.host, b.host), (b.host, a.host)):
                [rate] = streams(way, family=family, seconds=2)
                assert 0.5 * 8 * MBIT < rate < 1.2 * 8 * MBIT
        accepted, absent, rejected = counts(b)
        assert (absent, rejected) == before[1:]
        assert accepted > before[0] + 1000
        assert (inward.observe(), closer.observe()) == ({"a": 8 * MBIT}, {"a": 1})
        copied = int(b.host.out("cat", "/sys/class/net/copies/statistics/rx_packets"))
        captured = sum(len(rdpcap(str(path))) for path in tmp_path.glob("closer-*.pcap"))
        assert copied > 200
        assert captured > 200
