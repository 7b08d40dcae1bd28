"""Two namespaces, one wire:  scCa (10.99.7.1, fd99:7::1) ---- (10.99.7.2, fd99:7::2) scCb"""

import os
import socket
import struct
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from socket import AF_INET6

import pytest
from pyroute2 import DiagSocket, netns
from pyroute2.netlink.exceptions import NetlinkError
from readings import SETTING

from scentd.collect import inet_diag
from scentd.collect.inet_diag import Connection
from scentd.collect.source import Setting
from scentd.collect.tcp import LEAST_SENT, TcpReader, TcpSource, totals
from scentd.prefix import PrefixMap

SO_COOKIE = 57


REGIONS = PrefixMap([("10.2.0.0/16", "east"), ("fd02::/16", "east"), ("10.2.9.0/24", "west")])


def weighted(connections, before, regions=REGIONS, region=""):
    """(mean rtt, mean rttvar)"""
    moved = totals(connections, {cookie: Connection(cookie, 0, 0, n) for cookie, n in before.items()}, regions)[region]
    return (moved.rtt / moved.segments, moved.rttvar / moved.segments) if moved.segments else None


def test_the_mean_is_weighted_by_segments_moved():
    connections = [Connection(1, 0.010, 0.001, 100), Connection(2, 0.100, 0.020, 1000), Connection(3, 0.9, 0.9, 50)]
    assert weighted(connections, {1: 0, 2: 900, 3: 50}) == (pytest.approx(0.055), pytest.approx(0.0105))


def test_new_connections_count_in_full_and_counters_wrap():
    assert weighted([Connection(1, 0.1, 0.0, 3), Connection(2, 0.3, 0.0, 2)], {2: 2**32 - 1})[0] == pytest.approx(0.2)
    assert weighted([Connection(1, 0.1, 0.0, 3)], {1: 3}) is None
    assert weighted([], {}) is None


def to(address, rtt, cookie):
    family = AF_INET6 if ":" in address else socket.AF_INET
    return Connection(cookie, rtt, 0.0, 10, socket.inet_pton(family, address), 200_000, 10_000 * cookie)


def test_each_region_has_its_own_connections_by_the_longest_prefix():
    connections = [to("10.2.0.1", 0.1, 1), to("fd02::1", 0.3, 2), to("10.2.9.1", 0.5, 3), to("192.0.2.1", 0.7, 4)]
    found = totals(connections, {}, REGIONS)
    assert {region: moved.rtt / moved.segments for region, moved in found.items()} == pytest.approx(
        {"": 0.4, "east": 0.2, "west": 0.5}
    )
    assert {region: (moved.sent, moved.sent_again) for region, moved in found.items()} == {
        "": (800_000, 100_000),
        "east": (400_000, 30_000),
        "west": (200_000, 30_000),
    }


@pytest.mark.parametrize("length", [0, 71, 72, 75, 76, 90, 215])
def test_a_truncated_message_is_no_connection(length):
    info = struct.pack("=HH", 4 + 144, inet_diag.INET_DIAG_INFO) + bytes(68) + struct.pack("=II", 5, 2) + bytes(68)
    there = bytes([10, 0, 0, 2])
    message = inet_diag.DIAG.pack(socket.AF_INET, 1, 0, 0, bytes([10, 0, 0, 1]), there, 0, 7) + info
    assert inet_diag.parse_connection(message, 0, len(message)) == Connection(7, 5e-6, 2e-6, 0, there)
    assert inet_diag.parse_connection(message[:length], 0, length) is None


def test_a_refusal_of_the_kernel_is_an_error_and_not_a_wait_for_ever():
    def ask():
        with DiagSocket() as diag:
            diag.set_marshal(inet_diag.InetDiagMarshal())
            diag.bind()
            diag.get_sock_stats(family=socket.AF_INET, protocol=250)

    with ThreadPoolExecutor(1) as pool, pytest.raises(NetlinkError):
        pool.submit(ask).result(timeout=5)


def test_an_error_message_is_its_error():
    message = struct.pack("=IHHIIi", 36, 2, 0, 1, 1, -1) + bytes(16)
    (answer,) = inet_diag.InetDiagMarshal().parse(message)
    assert answer["header"]["error"].code == 1


def ip(*argv):
    subprocess.run(["ip", *argv], check=True)


def inside(name, function, *arguments):
    """Call in a new thread that has entered the namespace."""

    def call():
        netns.setns(name)
        return function(*arguments)

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(timeout=20)


@pytest.fixture(scope="module")
def wire():
    if os.geteuid():
        pytest.skip("namespaces need root")
    names = [f"sc{end}{os.getpid()}" for end in ("Ca", "Cb")]
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("link", "add", "scv0", "netns", names[0], "type", "veth", "peer", "name", "scv0", "netns", names[1])
        for number, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.99.7.{number}/24", "dev", "scv0")
            ip("-n", name, "addr", "add", f"fd99:7::{number}/64", "dev", "scv0", "nodad")
            ip("-n", name, "link", "set", "scv0", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


class Pair:
    """A connection from the first namespace to `host`, listened to in `where`."""

    def __init__(self, wire, host, where, family=None):
        family = family or (AF_INET6 if ":" in host else socket.AF_INET)
        listener = inside(
            where, lambda: socket.create_server(("", 0), family=family, dualstack_ipv6=family == AF_INET6)
        )
        self.near = inside(wire[0], lambda: socket.socket(family))
        self.near.settimeout(5)
        self.near.connect((host, listener.getsockname()[1]))
        self.far, _ = listener.accept()
        listener.close()

    def exchange(self, times):
        for _ in range(times):
            self.near.sendall(b"ping")
            self.far.recv(4)
            self.far.sendall(b"pong")
            self.near.recv(4)
        time.sleep(0.25)  # the last ACK may be 200 ms late, and it counts as a segment

    @property
    def cookie(self):
        return struct.unpack("=Q", self.near.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0]

    def close(self):
        self.near.close()
        self.far.close()


@pytest.fixture
def pairs(wire):
    made = []

    def make(*arguments):
        made.append(Pair(wire, *arguments))
        return made[-1]

    yield make
    for pair in made:
        pair.close()


@pytest.mark.netns
def test_every_connection_to_another_host_with_its_round_trip(wire, pairs):
    here, there = wire
    v4, v6, mapped = (
        pairs("10.99.7.2", there),
        pairs("fd99:7::2", there),
        pairs("::ffff:10.99.7.2", there, AF_INET6),
    )
    pairs("127.0.0.1", here).exchange(3)
    pairs("::1", here).exchange(3)
    pairs("10.99.7.1", here).exchange(3)
    for pair in (v4, v6, mapped):
        pair.exchange(10)
    found = {c.cookie: c for c in inside(here, inet_diag.established)}
    assert set(found) == {v4.cookie, v6.cookie, mapped.cookie}
    for pair in (v4, v6, mapped):
        info = pair.near.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        rtt, rttvar = struct.unpack_from("=II", info, 68)
        segments = sum(struct.unpack_from("=II", info, 136))
        sent = struct.unpack_from("=QQ", info, 200)
        there = socket.inet_pton(AF_INET6, "fd99:7::2") if pair is v6 else bytes([10, 99, 7, 2])
        assert found[pair.cookie] == Connection(pair.cookie, rtt / 1e6, rttvar / 1e6, segments, there, *sent)
        assert sent == (10 * len(b"ping"), 0)
        assert rtt > 0


@pytest.mark.netns
def test_samples_are_of_the_connections_in_use(wire, pairs):
    setting = Setting((), SETTING.on_alarm, PrefixMap([("10.99.7.2", "there"), ("fd99::/16", "idle")]))
    source = TcpReader(TcpSource(latency_full=1.0, jitter_full=1.0), setting)
    busy, idle = pairs("10.99.7.2", wire[1]), pairs("fd99:7::2", wire[1])
    busy.exchange(5)
    idle.exchange(50)
    assert inside(wire[0], source.read, 1.0) == []
    assert inside(wire[0], source.read, 2.0) == []  # nothing moved
    busy.exchange(20)
    rtt, rttvar = struct.unpack_from("=II", busy.near.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), 68)
    samples = inside(wire[0], source.read, 3.0)
    assert [(s.metric, s.at, s.region) for s in samples] == [
        (metric, 3.0, region) for region in ("", "there") for metric in ("latency", "jitter", "retransmits")
    ]
    assert [s.value for s in samples] == pytest.approx([rtt / 1e6, rttvar / 1e6, 0.0] * 2)


@pytest.mark.netns
def test_no_connections_no_samples(wire):
    source = TcpReader(TcpSource(), SETTING)
    assert inside(wire[0], source.read, 1.0) == []
    assert inside(wire[0], source.read, 2.0) == []


@pytest.mark.netns
def test_readings_leave_no_descriptor_open(wire):
    inside(wire[0], inet_diag.established)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        inside(wire[0], inet_diag.established)
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.netns
def test_what_is_lost_on_the_way_is_a_share_of_the_bytes(wire, pairs):
    """nft at the far end drops every eighth segment with data; the kernel sends it again."""
    setting = Setting((), SETTING.on_alarm, PrefixMap([("10.99.7.0/24", "there")]))
    source = TcpReader(TcpSource(retransmits_full=1.0), setting)
    pair = pairs("10.99.7.2", wire[1])
    rules = (
        "table ip sclose { chain in { type filter hook input priority 0; ip length > 500 numgen inc mod 8 0 drop; }; }"
    )
    assert inside(wire[0], source.read, 1.0) == []
    subprocess.run(["ip", "netns", "exec", wire[1], "nft", "-f", "-"], input=rules, text=True, check=True)
    try:
        pair.far.settimeout(15)
        for _ in range(400):
            pair.near.sendall(bytes(1000))
            rest = 1000
            while rest:
                rest -= len(pair.far.recv(rest))
    finally:
        subprocess.run(["ip", "netns", "exec", wire[1], "nft", "delete table ip sclose"], check=True)
    values = {s.region: s.value for s in inside(wire[0], source.read, 2.0) if s.metric == "retransmits"}
    sent, again = struct.unpack_from("=QQ", pair.near.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), 200)
    assert values == pytest.approx({"": again / sent, "there": again / sent})
    assert 0.05 < again / sent < 0.3
    assert sent > LEAST_SENT


def test_only_what_was_sent_since_the_last_reading_counts():
    before, after = Connection(1, 0.1, 0.0, 5, b"", 200_000, 40_000), Connection(1, 0.1, 0.0, 9, b"", 300_000, 50_000)
    assert totals([after], {1: before}, REGIONS)[""].share_sent_again == 0.1


@pytest.mark.parametrize(("sent", "share"), [(0, 0.0), (3000, 1500 / LEAST_SENT), (LEAST_SENT * 2, 750 / LEAST_SENT)])
def test_few_bytes_make_no_full_level(sent, share):
    moved = totals([Connection(1, 0.1, 0.0, 2, b"", sent, min(sent, 1500))], {}, REGIONS)[""]
    assert moved.share_sent_again == pytest.approx(share)
