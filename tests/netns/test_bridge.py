"""Guests of a hypervisor whose taps and uplink are ports of a Linux bridge: nothing is routed.

guest ---.                    The uplink carries 1600 bytes, the guest thinks of 1500. The guest knows nothing of
other ---+--- br0 (a) --- b   scentd; guest and a have addresses of the network of a. `other` is plugged in later, evil
evil  ---'                    sends under the address of b. a and b are strict with one another.

With the offload iptables does not see what the bridge forwards, with the queue it does (br_netfilter).
"""

from __future__ import annotations

import re
import socket
from contextlib import ExitStack

import pytest
from compiled import bpffs
from edges import DISCOVER, DO, HEADERS, grown, in_place, is_scented, offloaded, strict, switch, totals
from hosts import PATIENCE, Node, acquainted, answered, start, transfer, until
from scapy.layers.inet import IP, UDP, IPOption
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Ether
from topology import Host, Topology

from scentd.wire import layout

pytestmark = pytest.mark.netns

BOTH = pytest.mark.parametrize("version", [4, 6])
MTU = 1600
WRONG = layout.MAGIC.to_bytes(2, "big") + bytes(layout.LEN - 2)  # a scent that nobody has made


def plug(hyper: Host, host: Host, number: int) -> None:
    """Connect a host with the bridge of another."""
    hyper.ip(f"link add to-{host.name} mtu {MTU} type veth peer name eth0 mtu {MTU} netns {host.namespace}")
    host.ip("link set eth0 up", f"addr add 10.1.0.{number}/24 dev eth0", f"addr add fd00:1::{number}/64 dev eth0")
    hyper.ip(f"link set to-{host.name} master br0 up")
    host.interfaces, host.ipv4, host.ipv6 = ["eth0"], f"10.1.0.{number}", f"fd00:1::{number}"


class Bridged:
    """The hosts of the picture."""

    def __init__(self, net: Topology, directory) -> None:
        self.net = net
        hyper = net.host("a")
        hyper.ip("link add br0 type bridge", f"link set br0 mtu {MTU} up")
        hyper.ip("addr add 10.1.0.9/24 dev br0", "addr add fd00:1::9/64 dev br0")
        hyper.interfaces, hyper.ipv4, hyper.ipv6 = ["br0"], "10.1.0.9", "fd00:1::9"
        self.guest, self.other, self.evil, peer = (net.host(name) for name in ("guest", "other", "evil", "b"))
        plug(hyper, self.guest, 1)
        plug(hyper, peer, 2)
        plug(hyper, self.evil, 3)
        self.guest.ip("link set eth0 mtu 1500")
        self.a, self.b = Node(hyper, directory), Node(peer, directory)
        self.tenant = Node(self.guest, directory / "guest")
        ours = ["10.1.0.1", "fd00:1::1", "10.1.0.4", "fd00:1::4", *self.a.addresses]
        self.a.network["addresses"] = ours
        self.a.sections["stamp"] = {"forwarded": True}
        self.a.peers = [strict(self.b)]
        self.b.peers = [strict(self.a) | {"addresses": ours, "endpoint": self.a.addresses}]

    def forge(self, version: int, scent: bytes = b"") -> None:
        """Send the guest a datagram from the address of b, with a scent or without."""
        mac = self.guest.out("cat", "/sys/class/net/eth0/address").strip()
        source, destination = self.b.address(version), self.tenant.address(version)
        if version == 4:
            options = [IPOption(b"\x9e\x24" + scent)] if scent else []
            head = IP(src=source, dst=destination, options=options)
        else:
            head = IPv6(src=source, dst=destination)
            if scent:
                head /= IPv6ExtHdrDestOpt(options=[], autopad=0)
        frame = bytes(Ether(dst=mac) / head / UDP(sport=9, dport=9) / b"forged")
        if version == 6 and scent:
            inner = UDP(sport=9, dport=9) / b"forged"
            body = b"\x11\x04\x1e\x22" + scent + b"\x01\x00" + bytes(IPv6(src=source, dst=destination) / inner)[40:]
            frame = bytes(Ether(dst=mac) / IPv6(src=source, dst=destination, nh=60, plen=len(body))) + body
        with self.evil.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW) as end:
            end.bind(("eth0", 0))
            end.send(frame)


@pytest.fixture(scope="module", params=[True, False], ids=["offload", "queue"])
def bridged(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("br")
    with ExitStack() as stack:
        bpf = stack.enter_context(bpffs(directory / "bpf")) if request.param else None
        made = Bridged(stack.enter_context(Topology("br")), directory)
        see(made.a.host, bpf is None)
        if bpf is not None:
            offloaded(bpf, made.a, made.b)
        else:
            for host in (made.b.host, made.guest):  # packets come as a wire would bring them
                switch(host, "eth0", tso=False, gso=False)
        stack.enter_context(made.a)
        stack.enter_context(made.b)
        start(made.a, made.b)
        in_place(made.a, made.b)
        acquainted(made.b, made.a)
        acquainted(made.a, made.b)
        yield made


@BOTH
def test_a_guest_and_a_strict_peer(bridged, version):
    """What the guest sends is scented, and what it gets is verified and bare: full-size TCP, both ways."""
    with bridged.b.capture() as there, bridged.tenant.capture() as here:
        transfer(bridged.tenant, bridged.b, version)
        if bridged.b.pin_dir or version == 6:
            transfer(bridged.b, bridged.tenant, version)
        else:  # a queue leaves its 36 bytes in the packet, as padding
            with bridged.b.socket(version) as one, bridged.tenant.socket(version) as other:
                assert answered(one, other, bytes(1500 - 36 - HEADERS[version]), seconds=5)
        sent = [p for p in there.packets() if of(p, version) == bridged.tenant.address(version)]
        assert sent
        assert all(map(is_scented, sent))
        assert not any(is_scented(p) for p in here.packets())
    if version == 4:
        assert max(map(len, sent)) > 1500, "the room is the uplink's, the guest's is not lowered"


@BOTH
def test_the_hypervisors_own_packets(bridged, version):
    before = totals(bridged.a), totals(bridged.b)
    transfer(bridged.a, bridged.b, version)
    transfer(bridged.b, bridged.a, version)
    for node, was in zip((bridged.a, bridged.b), before, strict=True):
        until(lambda node=node, was=was: grown_by(node, was, "stamped") > 100, "they are scented")
        assert not grown_by(node, was, "rejected", "unstamped", "absent")


@BOTH
def test_what_is_forged_does_not_reach_a_guest(bridged, version):
    before = totals(bridged.a)
    with bridged.tenant.capture() as wire:
        bridged.forge(version)
        bridged.forge(version, WRONG)
        until(lambda: grown_by(bridged.a, before, "treated:absent:drop"), "the unscented one is counted")
        until(lambda: grown_by(bridged.a, before, "rejected:"), "the forged one is counted")
        assert not any(b"forged" in packet for packet in wire.packets())


@BOTH
def test_guests_of_the_same_bridge(bridged, version):
    """Both have the network's addresses: nothing is scented, nothing judged."""
    before = totals(bridged.a)
    with bridged.tenant.socket(version) as one, bridged.a.socket(version) as other:
        assert answered(one, other, seconds=5)
        assert answered(other, one, seconds=5)
    assert not grown_by(bridged.a, before, "rejected", "absent", "treated:absent")


@BOTH
def test_what_does_not_fit_the_uplink_is_counted(bridged, version):
    bridged.guest.ip(f"link set eth0 mtu {MTU}")
    try:
        reason = {4: "unstamped:too-big", 6: "unstamped:ipv6-fragment"}[version]
        before = totals(bridged.a)[reason]
        with bridged.tenant.socket(version) as one, bridged.b.socket(version) as other:
            one.setsockopt(*DISCOVER[version], DO)
            one.sendto(bytes(MTU - HEADERS[version]), other.getsockname()[:2])
        until(lambda: totals(bridged.a)[reason] > before, "it is counted")
    finally:
        bridged.guest.ip("link set eth0 mtu 1500")


def test_a_guest_that_is_plugged_in_later(bridged, tmp_path):
    plug(bridged.a.host, bridged.other, 4)
    late = Node(bridged.other, tmp_path)
    for version in (4, 6):
        with late.socket(version) as one, bridged.b.socket(version) as other:
            until(lambda one=one, other=other: answered(one, other), "b takes what it sends")
            until(lambda one=one, other=other: answered(other, one), "it gets what b sends")


def grown_by(node: Node, before: dict[str, int], *names: str) -> int:
    """How many packets the counters with these beginnings have counted since then."""
    return sum(count for name, count in grown(node, before).items() if name.startswith(names))


def of(packet: bytes, version: int) -> str:
    """The packet's source, or nothing if it is of the other version or ICMPv6, which neighbours are found by."""
    if packet[0] >> 4 != version or (version == 6 and packet[6] == 58):
        return ""
    return socket.inet_ntop(*((socket.AF_INET, packet[12:16]) if version == 4 else (socket.AF_INET6, packet[8:24])))


def test_what_the_queue_does_not_see_is_told(tmp_path):
    """Log, status and doctor name the bridge, and what to do."""
    with Topology("bq") as net:
        made = Bridged(net, tmp_path)
        see(made.a.host, False)
        with made.a:
            start(made.a)
            until(lambda: "bridge br0" in made.a.log.read_text(), "the log tells")
            [told] = made.a.status()["offload"]["bypasses"]
            assert told.startswith("bridge br0: ")
            said = made.a.cli("doctor").stdout
            assert re.search(r"warning +what it forwards +bridge br0: .*\n +-> datapath.offload", said)
            see(made.a.host, True)
            until(lambda: not made.a.status()["offload"]["bypasses"], "iptables sees it now", 2 * PATIENCE)


def see(hyper: Host, seen: bool) -> None:
    """Whether iptables sees what the bridge forwards."""
    names = (f"net.bridge.bridge-nf-call-{program}" for program in ("iptables", "ip6tables"))
    hyper.run("sysctl", "-qw", *(f"{name}={int(seen)}" for name in names))
