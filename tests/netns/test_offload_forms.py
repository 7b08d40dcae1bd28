"""Packets and interfaces that the offload's programs do not know, or see in another way.

a ---- b                     options and extension headers: the queue's, with the offload as without it
a ---- b, or a bridge, a VLAN, a VXLAN, a tun device on it: everything is scented, and verified, exactly once
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from compiled import bpffs
from edges import grown, offloaded, settled, strict, totals
from hosts import Node, acquainted, answered, pair, peer_of, say, start, transfer, until
from topology import Host, Topology

pytestmark = pytest.mark.netns

IP_OPTIONS, IPV6_HOPOPTS, IPV6_DSTOPTS = 4, 54, 59
ROUTER_ALERT = {4: b"\x94\x04\0\0", 6: b"\0\0\x05\x02\0\0\x01\0"}
TIMESTAMPS = b"\x44\x0c\x05\0" + bytes(8)  # RFC 791: room for two
EXPERIMENT = b"\0\0\x1e\x04scnt"  # a destination option of the same code point, without our magic
STAMPED, ABSENT = ({"stamped": 1}, {"accepted": 1}), ({}, {"absent": 1, "treated:absent:pass": 1})
NO_ROOM = {"unstamped:no-room": 1}, ABSENT[1]
DECLINED = {"other:offload_declined": 1}

# (family, level, option, its value, what both ends count)
FORMS = {
    "ipv4 plain": (4, 0, 0, b"", STAMPED),
    "ipv4 router alert": (4, socket.IPPROTO_IP, IP_OPTIONS, ROUTER_ALERT[4], STAMPED),
    "ipv4 timestamps": (4, socket.IPPROTO_IP, IP_OPTIONS, TIMESTAMPS, NO_ROOM),
    "ipv6 plain": (6, 0, 0, b"", STAMPED),
    "ipv6 router alert": (6, socket.IPPROTO_IPV6, IPV6_HOPOPTS, ROUTER_ALERT[6], STAMPED),
    "ipv6 destination options": (6, socket.IPPROTO_IPV6, IPV6_DSTOPTS, EXPERIMENT, STAMPED),
}


@pytest.fixture(scope="module", params=[True, False], ids=["offload", "queue"])
def nodes(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("ef")
    with bpffs(directory / "bpf") as bpf, pair("ef", directory) as (a, b):
        a.network["interval"] = "40s"  # nothing but the test's packets, once a profile has arrived
        b.network.pop("source")
        a.peers, b.peers = [peer_of(b, verify=False)], [peer_of(a)]
        if request.param:
            offloaded(bpf, a, b)
        start(a, b)
        with a.socket(4) as one, b.socket(4) as other:
            for n in range(10):
                say(one, other, b"%d" % n)
        acquainted(b, a)
        settled(a, {}, {"stamped": 10})
        settled(b, {}, {"accepted": 10})
        yield a, b


@pytest.mark.parametrize("name", FORMS)
def test_options_and_headers(nodes, name):
    """The stamper knows all forms, the verifier leaves them to the queue; each is counted once, as without programs."""
    a, b = nodes
    version, level, option, value, (sent, taken) = FORMS[name]
    declined = DECLINED if b.pin_dir and value else {}
    before = totals(a), totals(b)
    with a.socket(version) as one, b.socket(version) as other:
        if value:
            one.setsockopt(level, option, value)
        say(one, other, os.urandom(100))
    settled(a, before[0], sent)
    settled(b, before[1], taken | declined)


# -- interfaces ----------------------------------------------------------------

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000
UNDER = {"ipv4": "10.1.0.0/24", "ipv6": "fd00:1::/64"}


def addresses(hosts: list[Host], interface: str) -> None:
    """The network that the test uses: 10.9.0.0/24, fd00:9::/64 on this interface of each."""
    for number, host in enumerate(hosts, start=1):
        host.ip(f"link set {interface} up")
        host.ip(f"addr add 10.9.0.{number}/24 dev {interface}", f"addr add fd00:9::{number}/64 dev {interface}")
        host.ipv4, host.ipv6 = f"10.9.0.{number}", f"fd00:9::{number}"


def bridge(net: Topology, hosts: list[Host], filtered: int = 0) -> None:
    """The address is the bridge's, the packets leave by a port of it."""
    for host, port in zip(hosts, net.link(*hosts), strict=True):
        host.ip("link add br0 type bridge", f"link set {port} master br0")
        settings = [f"net.bridge.bridge-nf-call-{program}={filtered}" for program in ("iptables", "ip6tables")]
        host.run("sysctl", "-qw", *settings, check=bool(filtered))  # without br_netfilter nothing is filtered
    addresses(hosts, "br0")


def filtered_bridge(net: Topology, hosts: list[Host]) -> None:
    """br_netfilter: iptables sees the packet at the port, before the program of the bridge does."""
    if not os.path.exists("/proc/sys/net/bridge"):
        pytest.skip("no br_netfilter in this kernel")
    bridge(net, hosts, filtered=1)


def vlan(net: Topology, hosts: list[Host]) -> None:
    """The device below has addresses that are peers', too, and with them programs."""
    for host, below in zip(hosts, net.link(*hosts, **UNDER), strict=True):
        made = subprocess.run(
            ["ip", "-n", host.namespace, *f"link add link {below} name v100 type vlan id 100".split()],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            pytest.skip(f"no VLANs in this kernel: {made.stderr.strip()}")
    addresses(hosts, "v100")


def macvlan(net: Topology, hosts: list[Host]) -> None:
    for host, below in zip(hosts, net.link(*hosts, **UNDER), strict=True):
        host.ip(f"link add link {below} name m0 type macvlan mode bridge")
    addresses(hosts, "m0")


def vxlan(net: Topology, hosts: list[Host]) -> None:
    """A tunnel whose outer packets are between peers, too: each packet is scented inside and outside."""
    net.link(*hosts, **UNDER)
    for host, other in (hosts, hosts[::-1]):
        host.ip(f"link add x0 mtu 1400 type vxlan id 9 local {host.ipv4} remote {other.ipv4} dstport 4789")
    addresses(hosts, "x0")


def tun(net: Topology, hosts: list[Host]) -> None:
    """A tunnel without link layer, and a relay of ours between its ends."""
    ends = [host.call(open_tun) for host in hosts]
    addresses(hosts, "t0")
    for one, other in (ends, ends[::-1]):
        threading.Thread(target=relay, args=(one, other), daemon=True).start()


def open_tun() -> int:
    end = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", b"t0", IFF_TUN | IFF_NO_PI))
    return end


def relay(one: int, other: int) -> None:
    """Until the namespace and with it the device is gone."""
    with suppress(OSError):
        while packet := os.read(one, 70000):
            os.write(other, packet)


@contextmanager
def carried(make, directory, scented: list[str] | None = None) -> Iterator[tuple[Node, Node]]:
    """Both ends with daemons; a scents what goes to the addresses `scented`, all of b's if not given."""
    with bpffs(directory / "bpf") as bpf, Topology("ec") as net:
        hosts = [net.host("a"), net.host("b")]
        make(net, hosts)
        with Node(hosts[0], directory) as a, Node(hosts[1], directory) as b:
            for node, other in ((a, b), (b, a)):
                node.network |= {"addresses": ["10.0.0.0/8", "fd00::/16"], "interval": "40s"}
                node.peers = [strict(other) | {"addresses": whole(other.host), "endpoint": other.addresses}]
            a.peers[0]["addresses"] = scented or a.peers[0]["addresses"]
            a.peers[0]["endpoint"] = a.peers[0]["addresses"][:1]
            offloaded(bpf, a, b)
            start(a, b)
            yield a, b


def whole(host: Host) -> list[str]:
    """All addresses that a peer has, of whatever interface."""
    number = host.ipv4.rpartition(".")[2]
    return [f"10.9.0.{number}", f"fd00:9::{number}", f"10.1.0.{number}", f"fd00:1::{number}"]


@pytest.mark.parametrize(
    ("make", "scents"), [(bridge, 1), (filtered_bridge, 1), (vlan, 1), (macvlan, 1), (vxlan, 2), (tun, 1)]
)
def test_interfaces_scent_exactly_once(tmp_path, make, scents):
    with carried(make, tmp_path) as (a, b):
        assert a.status()["datapath"] == b.status()["datapath"] == "nfqueue+ebpf"
        before = {node.name: totals(node) for node in (a, b)}  # a tunnel sends before the first profile, too
        for version in (4, 6):
            with a.socket(version) as one, b.socket(version) as other:
                for n in range(20):
                    say(one, other, os.urandom(n * 30))
        if scents == 1:  # a tunnel's own packets, such as those with neighbour discovery inside, count as well
            settled(a, {}, {"stamped": 40})
            settled(b, {}, {"accepted": 40})
        assert totals(a)["stamped"] >= 40 * scents
        for version in (4, 6):
            transfer(a, b, version)
            transfer(b, a, version)
        for node in (a, b):
            refused = [name for name in grown(node, before[node.name]) if name.startswith(("unst", "rej", "abs"))]
            assert not refused


def test_a_scented_tunnel_does_not_vouch_for_what_is_in_it(tmp_path):
    """The outer packets are scented and accepted, the inner ones are not scented: they are judged by themselves."""
    with carried(vxlan, tmp_path, scented=["10.1.0.2", "fd00:1::2"]) as (a, b):
        with a.socket(4) as one, b.socket(4) as other:
            assert not answered(one, other, seconds=0.5)
        until(lambda: totals(b).get("treated:absent:drop"), "the inner packet is dropped")
        assert totals(b)["accepted"] >= 1
