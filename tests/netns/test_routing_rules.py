"""A host with two uplinks and rules of its own: every packet leaves as it would without scentd, and has room.

a --first--  10.1.0.0/24, fd00:1::/64 -- r --- b 10.9.0.0/24, fd00:9::/64
a --second-- 10.2.0.0/24, fd00:2::/64 -- r       main: by the first, then the second; 100: the second; 101: both
"""

from __future__ import annotations

import errno
import socket
from collections import Counter
from contextlib import nullcontext, suppress
from ipaddress import ip_address
from typing import NamedTuple

import pytest
from compiled import bpffs
from hosts import Capture, Node, peer_of, start, until
from topology import Host, Topology

pytestmark = pytest.mark.netns

SO_MARK = 36
PORT = 9
GATEWAYS = {4: ("10.1.0.2", "10.2.0.2"), 6: ("fd00:1::2", "fd00:2::2")}
SOURCES = {4: ("10.1.0.1", "10.2.0.1"), 6: ("fd00:1::1", "fd00:2::1")}
HEADERS = {4: 28, 6: 48}
OVERHEAD = {4: 36, 6: 40}


@pytest.fixture
def net():
    with Topology("upl") as topology:
        yield topology


@pytest.fixture
def router(net) -> Host:
    return net.host("r", forward=True)


@pytest.fixture(params=["queue", "offload"])
def uplinks(request, tmp_path, net, router):
    """a and b; no daemon has started."""
    a, b = Node(net.host("a"), tmp_path), Node(net.host("b"), tmp_path)
    for end, link in ((a.host, "1"), (a.host, "2"), (b.host, "9")):
        net.link(end, router, ipv4=f"10.{link}.0.0/24", ipv6=f"fd00:{link}::/64")
    b.host.ip("route add default via 10.9.0.2", "route add default via fd00:9::2")
    for version, (first, second) in GATEWAYS.items():
        a.host.run("ip", f"-{version}", "route", "add", "default", "via", first, "metric", "20")
        a.host.run("ip", f"-{version}", "route", "add", "default", "via", second, "metric", "30")
        a.host.run("ip", f"-{version}", "route", "add", "default", "via", second, "table", "100")
        hops = ("nexthop", "via", first, "nexthop", "via", second)
        a.host.run("ip", f"-{version}", "route", "add", "default", "table", "101", *hops)
    a.host.ip(f"link set {a.host.interfaces[1]} group 7")
    a.host.sysctl(net_ipv4_fib__multipath__hash__policy=1, net_ipv6_fib__multipath__hash__policy=1)
    router.sysctl(net_ipv4_conf_all_rp__filter=0)
    own = [*SOURCES[4], *SOURCES[6]]
    a.network["addresses"] = own
    a.peers, b.peers = [peer_of(b)], [{**peer_of(a), "addresses": own}]
    with bpffs(tmp_path / "bpf") if request.param == "offload" else nullcontext() as directory, a, b:
        if directory:
            a.pin_dir, b.pin_dir = directory / "a", directory / "b"
        yield a, b


class Way(NamedTuple):
    """How a host sends to b: the source, SO_MARK, the number of the link to which the socket is bound, its port."""

    version: int
    source: str = ""
    mark: int = 0
    bound: int | None = None
    port: int = 6999  # the hash of several ways has it


def opened(a: Node, b: Node, way: Way) -> socket.socket:
    """A connected UDP socket whose packets are never fragmented. Raises OSError if the host has no way."""
    end = a.socket(way.version, bind=False)
    try:
        if way.mark:
            end.setsockopt(socket.SOL_SOCKET, SO_MARK, way.mark)
        if way.bound is not None:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, a.host.interfaces[way.bound].encode())
        end.bind((way.source, way.port))
        end.setsockopt(*((socket.IPPROTO_IP, 10, 2) if way.version == 4 else (socket.IPPROTO_IPV6, 23, 2)))
        end.connect((b.address(way.version), PORT))
    except OSError:
        end.close()
        raise
    return end


def mtu(a: Node, b: Node, way: Way) -> int:
    """What a socket takes for the MTU of its path; 0 if the host has no way."""
    with suppress(OSError), opened(a, b, way) as end:
        return end.getsockopt(*((socket.IPPROTO_IP, 14) if way.version == 4 else (socket.IPPROTO_IPV6, 24)))
    return 0


def seen(a: Node, b: Node, router: Host, way: Way, room: int) -> Counter[tuple[str, ...]]:
    """(link, source, whether it has a scent) of full-size datagrams as the router gets them; or the host's error."""
    with Capture(router, router.interfaces[0]) as first, Capture(router, router.interfaces[1]) as second:
        try:
            with opened(a, b, way) as end:
                for _ in range(3):
                    end.send(bytes(1500 - HEADERS[way.version] - room))
        except OSError as error:
            return Counter([(errno.errorcode[error.errno or 0],)])
        result: Counter[tuple[str, ...]] = Counter()

        def all_came() -> bool:
            for name, capture in (("first", first), ("second", second)):
                for packet in capture.packets():
                    if packet[0] >> 4 == way.version and len(packet) >= 1500 - room:
                        fields = (
                            (packet[12:16], packet[0] & 15 > 5) if way.version == 4 else (packet[8:24], packet[6] == 60)
                        )
                        result[name, str(ip_address(fields[0])), "scented" if fields[1] else "plain"] += 1
            return sum(result.values()) >= 3

        until(all_came, f"{way} leaves a")
        return result


def of_family(version: int, line: str) -> list[str]:
    first, second = SOURCES[version]
    return [
        "ip",
        f"-{version}",
        *line.format(first=first, second=second, host="/32" if version == 4 else "/128").split(),
    ]


HOSTS_RULES = {
    "vpn": ("rule add not fwmark 51820 table 100", "rule add table main suppress_prefixlength 0"),
    "source": ("rule add from {second} table 100",),
    "several ways by source": ("rule add from {first} table 101", "rule add from {second} table 101"),
    "group": ("rule add table 100 suppress_ifgroup 7",),
    "protocol and port": ("rule add ipproto udp dport 9-10 table 100", "rule add ipproto tcp table 101"),
    "users": ("rule add uidrange 0-0 table 100",),
    "refused": ("rule add fwmark 51820 prohibit", "rule add from {second} table 100"),
    "jump": ("rule add pref 20000 from {first} goto 32766", "rule add pref 30000 table 100"),
    "bit of ours": ("rule add fwmark 0/0x10000000 table 100",),
    "none": (),
}


def ways_of(version: int) -> list[Way]:
    first, second = SOURCES[version]
    plain = [Way(version), Way(version, mark=51820), Way(version, bound=0), Way(version, bound=1)]
    return [
        *plain,
        Way(version, first),
        Way(version, second),
        *(Way(version, second, port=p) for p in range(7000, 7003)),
    ]


def test_every_packet_leaves_as_it_would_without_us(uplinks, router):
    """And with a scent, at full size: rules of the host appear and go while the daemon runs."""
    a, b = uplinks
    listening = [b.socket(version, bind=False) for version in (4, 6)]
    for version, end in zip((4, 6), listening, strict=True):
        end.bind((b.address(version), PORT))
    alone = {}
    for running in (False, True):
        for name, lines in HOSTS_RULES.items():
            for version in (4, 6):
                for line in lines:
                    a.host.run(*of_family(version, line))
                for way in ways_of(version):
                    if not running:
                        alone[name, way] = seen(a, b, router, way, 0)
                        continue
                    refused = any(len(key) == 1 for key in alone[name, way])
                    jumps = name == "jump" and all(key[1:2] == SOURCES[version][:1] for key in alone[name, way])
                    want = {0} if refused else {1500 - OVERHEAD[version], 1500 if jumps else 0}
                    until(lambda: mtu(a, b, way) in want, f"{name}: {way} has room")  # noqa: B023
                    expected = Counter({k if refused else (*k[:2], "scented"): n for k, n in alone[name, way].items()})
                    room = OVERHEAD[version]
                    until(lambda: seen(a, b, router, way, room) == expected, f"{name}: {way} as before")  # noqa: B023
                for line in lines:
                    a.host.run(*of_family(version, line.replace("rule add", "rule del")))
        if not running:
            start(a, b)
    for end in listening:
        end.close()
    a.stop()
    assert "proto 83" not in a.host.out("ip", "rule") + a.host.out("ip", "route", "show", "table", "all")
