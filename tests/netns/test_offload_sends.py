"""Large sends with the offload, with and without what the device does for them: UDP_SEGMENT, UDP_GRO, TCP.

a ---- 10.1.0.0/24, fd00:1::/64 ---- b
"""

from __future__ import annotations

import errno
import os
import socket
import struct

import pytest
from edges import DISCOVER, DO, HEADERS, OVERHEAD, grown, is_scented, offloaded_pair, strict, switch, totals
from hosts import acquainted, start, transfer, until

from scentd.datapath.host import selection

pytestmark = pytest.mark.netns

BOTH = pytest.mark.parametrize("version", [4, 6])
UDP_SEGMENT, UDP_GRO = 103, 104


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    with offloaded_pair("es", tmp_path_factory.mktemp("es")) as (a, b):
        a.peers, b.peers = [strict(b)], [strict(a)]
        start(a, b)
        acquainted(b, a)
        acquainted(a, b)
        yield a, b


DEVICES = {
    "as-it-is": {},
    "without-segmentation": {"tso": False, "gso": False},
    "without-checksums": {"tx": False},
    "with-nothing": {"tx": False, "tso": False, "gso": False},
}


ANY_DEVICE = pytest.mark.parametrize("device", DEVICES, indirect=True)


@pytest.fixture
def device(request, nodes):
    """How a's device is switched. One that does not finish checksums is the queue's."""
    a, _ = nodes
    on, name = DEVICES[request.param], a.host.interfaces[0]
    switch(a.host, name, **on)
    until(lambda: is_served(a, name) is ("tx" not in on), "the daemon sees what the device does")
    yield
    switch(a.host, name, **dict.fromkeys(on, True))
    until(lambda: is_served(a, name), "the daemon sees what the device does")


def is_served(node, name: str) -> bool:
    """Whether packets by this interface are the program's."""
    table = node.host.out("nft", "list", "table", "inet", selection.NAME)
    return "goto leaving" not in table or f'oifname "{name}" accept' in table


@pytest.fixture(params=[False, True], ids=["", "gro"])
def merging(request, nodes):
    _, b = nodes
    switch(b.host, b.host.interfaces[0], gro=request.param)
    yield request.param
    switch(b.host, b.host.interfaces[0], gro=False)


@BOTH
@ANY_DEVICE
def test_udp_segments(nodes, device, merging, version):
    """One send of many datagrams (UDP_SEGMENT), received one by one and merged (UDP_GRO): the same bytes."""
    a, b = nodes
    before = totals(a), totals(b)
    most = 1500 - OVERHEAD[version] - HEADERS[version]
    count = 0
    for size in (1, 100, 1200, most):
        for merge in (False, True):
            with a.socket(version) as one, b.socket(version) as other:
                one.setsockopt(socket.SOL_UDP, UDP_SEGMENT, size)
                other.setsockopt(socket.SOL_UDP, UDP_GRO, merge)
                data = os.urandom(size * 20 + size // 2)
                one.sendto(data, other.getsockname()[:2])
                try:
                    assert received(other, len(data), size) == data, (size, merge)
                except TimeoutError:
                    raise AssertionError((size, merge, grown(a, before[0]), grown(b, before[1]))) from None
                count += -(-len(data) // size)
    until(lambda: grown(a, before[0]).get("stamped", 0) >= count, "each segment counts as stamped")
    until(lambda: grown(b, before[1]).get("accepted", 0) >= count, "and as accepted")
    assert not any(name.startswith(("unstamped", "rejected")) for name in grown(a, before[0]) | grown(b, before[1]))


def received(end: socket.socket, length: int, size: int) -> bytes:
    """That many bytes; each piece is a datagram, or of datagrams of `size` bytes, as the kernel says."""
    got = b""
    while len(got) < length:
        data, more, _, _ = end.recvmsg(70000, 64)
        merged = [struct.unpack("i", value[:4])[0] for _, kind, value in more if kind == UDP_GRO]
        assert merged in ([], [size])
        assert merged or len(data) <= size
        got += data
    return got


@BOTH
def test_udp_segments_that_leave_no_room(nodes, version):
    """A segment that fits the link but not with the scent: the socket is told, as for a single datagram."""
    a, b = nodes
    with a.socket(version) as one, b.socket(version) as other:
        one.setsockopt(*DISCOVER[version], DO)
        one.setsockopt(socket.SOL_UDP, UDP_SEGMENT, 1500 - HEADERS[version])
        with pytest.raises(OSError) as refused:  # noqa: PT011
            one.sendto(bytes(6000), other.getsockname()[:2])
        assert refused.value.errno in (errno.EMSGSIZE, errno.EINVAL)


@BOTH
@ANY_DEVICE
def test_tcp_on_any_device(nodes, device, merging, version):
    """TCP at full size; what the device does not do the kernel does, behind the scent or before it."""
    a, b = nodes
    before = totals(a), totals(b)
    with b.capture() as wire:
        transfer(a, b, version, 4 << 20)
        transfer(b, a, version, 1 << 20)
        assert all(map(is_scented, filter(is_tcp_or_scented, wire.packets())))
    counted = grown(a, before[0]), grown(b, before[1])
    assert not any(name.startswith(("unstamped", "rejected", "absent")) for name in counted[0] | counted[1]), counted


def is_tcp_or_scented(packet: bytes) -> bool:
    return is_scented(packet) or (packet[9] if packet[0] >> 4 == 4 else packet[6]) == socket.IPPROTO_TCP
