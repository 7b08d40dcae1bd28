"""The links of guests, seen from their host: what `bandwidth` says of a tap and a veth with seen_from = "outside".

guest ==tap0== host ==veth== container
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from struct import pack

import pytest
from readings import SETTING
from topology import Topology

from scentd.collect.bandwidth import BandwidthReader, BandwidthSource
from scentd.collect.source import CollectError

TUNSETIFF = 0x400454CA  # linux/if_tun.h
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
FRAME = b"\xff" * 6 + b"\x02\0\0\0\0\x01" + b"\x88\xb5" + bytes(1000)  # to everybody, of a local experiment's type
CAPACITY = 1e9


@pytest.fixture
def net():
    with Topology("ln") as net:
        yield net


def tap(name: str) -> int:
    """Make a tap in this thread's namespace: whoever writes to the descriptor is the guest that sends."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return fd


def levels(host, reader) -> dict[str, float]:
    return {s.metric: s.value for s in host.call(reader.read, time.time())}


def source(interface: str, seen_from: str) -> BandwidthReader:
    return BandwidthReader(BandwidthSource(interface=interface, capacity=CAPACITY, seen_from=seen_from), SETTING)


def test_a_guest_that_sends_is_out_from_outside(net):
    host = net.host("host")
    fd = host.call(tap, "tap0")
    host.ip("link set tap0 up")
    inside, outside = source("tap0", "inside"), source("tap0", "outside")
    assert levels(host, inside) == levels(host, outside) == {}
    for _ in range(1000):
        os.write(fd, FRAME)
    time.sleep(0.1)
    seen, meant = levels(host, inside), levels(host, outside)
    assert meant["bandwidth_out"] > 10 * meant["bandwidth_in"]
    assert seen["bandwidth_in"] > 10 * seen["bandwidth_out"]
    os.close(fd)


def test_a_container_that_receives_is_in_from_outside(net):
    host, container = net.host("host"), net.host("container")
    ours, theirs = net.link(host, container, ipv4="10.1.0.0/24")
    outside, inside = source(ours, "outside"), source(theirs, "inside")
    assert levels(host, outside) == levels(container, inside) == {}

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(1000):
                sock.sendto(bytes(1000), (container.ipv4, 9))

    host.call(send)
    time.sleep(0.1)
    seen, own = levels(host, outside), levels(container, inside)
    assert seen["bandwidth_in"] > 2 * seen["bandwidth_out"]
    assert own["bandwidth_in"] > 2 * own["bandwidth_out"]


def test_a_tap_that_goes_and_comes_back(net):
    """With the guest; then it has new counters, and what it moved before is no burst."""
    host = net.host("host")
    reader = source("tap0", "outside")
    for _ in range(2):
        with pytest.raises(CollectError, match="interface tap0: No such device"):
            levels(host, reader)
        fd = host.call(tap, "tap0")
        host.ip("link set tap0 up")
        for _ in range(100):
            os.write(fd, FRAME)
        time.sleep(0.05)
        assert levels(host, reader) == {}
        time.sleep(0.05)
        assert set(levels(host, reader)) == {"bandwidth_in", "bandwidth_out"}
        os.close(fd)
