"""Two verifiers behind one address: a router's ECMP sends each only some of the packets.

a ---- router ---- v1, v2      10.9.0.1, fd00:9::1 on both; one key, and each an address of its own
"""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager, suppress

import pytest
from compiled import bpffs
from edges import in_place, offloaded
from hosts import Node, acquainted, peer_of, start, until
from topology import Topology

pytestmark = pytest.mark.netns

SHARED = {4: "10.9.0.1", 6: "fd00:9::1"}
PORT = 4000
INTERVAL = 2  # seconds
WATCHED = 4  # intervals


@contextmanager
def behind_one_address(directory, offload):
    with ExitStack() as stack:
        net = stack.enter_context(Topology("ac"))
        router = net.host("r", forward=True)
        a = Node(net.host("a"), directory)
        net.link(a.host, router, ipv4="10.1.0.0/24", ipv6="fd00:1::/64")
        a.host.ip("route add default via 10.1.0.2", "route add ::/0 via fd00:1::2")
        verifiers = []
        for n in (1, 2):
            v = Node(net.host(f"v{n}"), directory, issues=False)
            net.link(v.host, router, ipv4=f"10.2.{n}.0/24", ipv6=f"fd00:2:{n}::/64")
            v.host.ip(f"route add default via 10.2.{n}.2", f"route add ::/0 via fd00:2:{n}::2")
            v.host.ip(f"addr add {SHARED[4]}/32 dev lo", f"addr add {SHARED[6]}/128 dev lo")
            v.network["addresses"] = [*SHARED.values(), *v.addresses]
            v.peers = [peer_of(a, stamp=False)]
            verifiers.append(v)
        one, other = verifiers
        other.key_file.write_text(one.key_file.read_text())  # one identity
        for version, shared in SHARED.items():
            ways = " ".join(f"nexthop via {v.address(version)}" for v in verifiers)
            router.ip(f"route add {shared} {ways}")
        router.sysctl(net_ipv4_fib__multipath__hash__policy=1, net_ipv6_fib__multipath__hash__policy=1)
        a.network["interval"] = f"{INTERVAL}s"
        a.peers = [{**peer_of(one), "addresses": list(SHARED.values())}]
        if offload:
            offloaded(stack.enter_context(bpffs(directory / "bpf")), a, *verifiers)
        for node in (a, *verifiers):
            stack.enter_context(node)
        yield a, verifiers


@pytest.fixture(scope="module", params=["queue", "offload"])
def nodes(request, tmp_path_factory):
    with behind_one_address(tmp_path_factory.mktemp("ac"), request.param == "offload") as (a, verifiers):
        start(a, *verifiers)
        in_place(a, *verifiers)
        yield a, verifiers


class Flows:
    """Sockets of a's, by the verifier to which the router sends their packets."""

    def __init__(self, a, verifiers, version):
        self.ears = [v.socket(version, bind=False) for v in verifiers]
        self.to = [[], []]
        for ear in self.ears:
            ear.bind((SHARED[version], PORT))
            ear.setblocking(False)
        for _ in range(24):
            end = a.socket(version)
            end.connect((SHARED[version], PORT))
            end.send(b"?")
            until(lambda end=end: self.sort(end), "a verifier hears it")

    def sort(self, end):
        for ear, ends in zip(self.ears, self.to, strict=True):
            with suppress(BlockingIOError):
                ear.recv(10)
                ends.append(end)
                return True
        return False

    def __enter__(self):
        assert all(self.to), "both verifiers have flows"
        return self.to

    def __exit__(self, *_):
        for end in (*self.ears, *self.to[0], *self.to[1]):
            end.close()


@pytest.fixture(scope="module")
def flows(nodes):
    """By IP version."""
    with Flows(*nodes, 4) as four, Flows(*nodes, 6) as six:
        yield four, six


TRAFFIC = {
    "no packet": lambda one, other: [],
    "one flow": lambda one, other: one[:1],
    "a flow to each in turn": lambda one, other: [one[0], other[0]],
    "many flows": lambda one, other: one + other,
}
BEACONS = {
    "by IPv4": {"verifiers": 2, "endpoint": [SHARED[4]]},
    "by IPv6": {"verifiers": 2, "endpoint": [SHARED[6]]},
    "to each one's address": {"verifier_endpoint": ["10.2.1.1", "fd00:2:2::1"]},
}


def say_how(a, beacons):
    """The sender's settings about who is behind the address."""
    others = {k: v for k, v in a.peers[0].items() if k not in ("verifiers", "endpoint", "verifier_endpoint")}
    a.peers = [others | beacons]
    a.reload()


def watch(a, verifiers, ends):
    """Send packets for some intervals. Each verifier's lags behind what a has issued, in seconds, and its profiles."""
    lags, whole = [set() for _ in verifiers], [set() for _ in verifiers]
    end = time.monotonic() + WATCHED * INTERVAL
    while time.monotonic() < end:
        for one in ends:
            one.send(b"x")
        time.sleep(0.02)
        issued = a.status()["networks"][0]["epoch"]
        for n, v in enumerate(verifiers):
            epoch = v.profile(a)["epoch"]
            lags[n].add(issued - epoch)
            whole[n].add(epoch)
    return lags, whole


@pytest.mark.parametrize(
    ("traffic", "beacons"),
    [*(("no packet", way) for way in BEACONS), *((kind, "by IPv4") for kind in list(TRAFFIC)[1:])],
)
def test_each_verifier_has_each_profile_within_two_intervals(nodes, flows, traffic, beacons):
    a, verifiers = nodes
    say_how(a, BEACONS[beacons])
    first = a.status()["networks"][0]["epoch"]
    for v in verifiers:
        until(lambda v=v: (v.profile(a) or {}).get("epoch", 0) > first, f"{v.name} has a profile of this setting")
    lags, whole = watch(a, verifiers, [end for one, other in flows for end in TRAFFIC[traffic](one, other)])
    assert max(lags[0] | lags[1]) <= 2 * INTERVAL, f"{lags} {whole}"
    assert min(len(whole[0]), len(whole[1])) >= WATCHED - 1


def test_a_verifier_that_is_down_does_not_concern_the_other(nodes):
    """The host of the one that is down answers beacons with "port unreachable"."""
    a, (one, other) = nodes
    say_how(a, BEACONS["by IPv4"])
    acquainted(one, a)
    other.stop()
    failed, epoch = a.status()["beacons"]["failed"], one.profile(a)["epoch"]
    lags, whole = watch(a, [one], [])
    assert max(lags[0]) <= 2 * INTERVAL, f"{lags} {whole}"
    assert one.profile(a)["epoch"] > epoch
    assert a.status()["beacons"]["failed"] == failed
