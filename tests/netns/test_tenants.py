"""Two tenants with the same addresses behind one gateway: told apart at both ends, and one is attacked.

red  ---- gateway ---- b     each tenant has 10.0.0.1/24, and the gateway 10.0.0.2 at both; b sees 10.1.0.1 alone
blue ----'                   red is known by its interface, blue by the mark that the gateway's firewall gives it
"""

from __future__ import annotations

import json
import socket
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from compiled import bpffs
from hosts import Node, answered, peer_of, settled, start, transfer, until
from topology import Topology

from scentd.state import key_files

pytestmark = pytest.mark.netns

MARK = {"red": "0x100", "blue": "0x200"}
QUARANTINE = {"kind": "quarantine", "target": "network", "timeout": "3s"}
# Each tenant's connections in a zone of their own, as they have equal addresses; answers go where the connection began.
FIREWALL = """
table ip tenants {{
    chain zones {{
        type filter hook prerouting priority -300
        iifname {red} ct original zone set 1
        iifname {blue} ct original zone set 2
    }}
    chain marks {{
        type filter hook prerouting priority -150
        iifname {red} ct mark set 0x100
        iifname {blue} ct mark set 0x200
        ct mark 0x100 meta mark set meta mark | 0x100
        ct mark 0x200 meta mark set meta mark | 0x200
    }}
    chain behind {{
        type nat hook postrouting priority 100
        oifname {out} masquerade
    }}
}}
"""


class Tenant(NamedTuple):
    """A host behind the gateway, and the network that the gateway has for it."""

    node: Node
    interface: str  # of the gateway
    network: dict

    @property
    def name(self) -> str:
        return self.network["name"]

    def alarm(self) -> None:
        """What Suricata writes when it sees an attack on the tenant."""
        line = {"event_type": "alert", "src_ip": "10.0.0.1", "dest_ip": "192.0.2.66"}
        line["alert"] = {"severity": 1, "category": "A Network Trojan was detected", "signature": "test"}
        with socket.socket(socket.AF_UNIX) as end:
            end.connect(self.network["source"][1]["socket"])
            end.sendall(json.dumps(line).encode() + b"\n")


def tenant(net: Topology, gateway: Node, name: str, directory, **known) -> Tenant:
    node = Node(net.host(name), directory)
    _, interface = net.link(node.host, gateway.host, ipv4="10.0.0.0/24")
    node.host.ip("route add default via 10.0.0.2")
    key_file = directory / f"{name}.key"
    key_file.touch(0o600)
    key_file.write_text(key_files.generate() + "\n")
    eve = {"kind": "eve", "socket": str(directory / f"{name}.sock"), "hold": "4s"}
    known = known or {"interface": [interface]}
    source = [{"kind": "memory"}, eve]
    network = {"name": name, "key_file": str(key_file), "interval": "2s", "source": source, **known}
    return Tenant(node, interface, network)


def peer(tenant: Tenant, bind: str) -> dict:
    public = str(key_files.load(tenant.network["key_file"]).public)
    return {"name": tenant.name, "public_key": public, "addresses": ["10.1.0.1"], "bind": bind, "stamp": False}


@contextmanager
def tenants(tag: str, directory, offload: bool, bind: str):
    with Topology(tag) as net, bpffs(directory / "bpf") as bpf:
        gateway, b = Node(net.host("g", forward=True), directory), Node(net.host("b"), directory)
        net.link(gateway.host, b.host, ipv4="10.1.0.0/24")
        red = tenant(net, gateway, "red", directory)
        blue = tenant(net, gateway, "blue", directory, mark="0x200/0x300")
        gateway.host.sysctl(net_ipv4_conf_all_rp__filter=0, net_ipv4_fwmark__reflect=1)
        for number, each in enumerate((red, blue), start=101):
            gateway.host.ip(
                f"route add 10.0.0.0/24 dev {each.interface} table {number}",
                f"rule add fwmark {MARK[each.name]}/0x300 table {number} priority {number}",
            )
        names = {"red": red.interface, "blue": blue.interface, "out": gateway.host.interfaces[0]}
        gateway.host.run("nft", "-f", "-", input=FIREWALL.format(**names))
        if offload:
            gateway.pin_dir, b.pin_dir = bpf / "g", bpf / "b"
        gateway.peers = [peer_of(b, bind=bind)]
        gateway.sections |= {"stamp": {"forwarded": True}, "network": [red.network, blue.network]}
        b.peers = [{**peer(red, bind), "absent": "drop"}, peer(blue, bind)]
        b.sections["policy"] = [{"name": "isolate", "when": "threat >= 0.5", "do": QUARANTINE}]
        with gateway, b:
            start(gateway, b)
            yield gateway, b, red, blue


@pytest.fixture(scope="module", params=[(False, "sender"), (True, "flow"), (True, "sender")], ids=str)
def hosts(request, tmp_path_factory):
    offload, bind = request.param
    tag = f"tn{offload:d}{bind[0]}"
    with tenants(tag, tmp_path_factory.mktemp(tag), offload, bind) as found:
        yield found


def test_each_tenant_has_its_own_profile(hosts):
    """The highest epochs and the profiles are each key's own, though all packets come from one address."""
    _, b, red, blue = hosts
    for each in (red, blue):
        until(lambda each=each: profile(b, each), f"b knows {each.name}")
        transfer(each.node, b, 4)
    absent = settled(b, "absent")  # TCP before it knew what fits
    with red.node.socket(4) as one, blue.node.socket(4) as other, b.socket(4) as receiver:
        for n in range(20):
            for sender in (one, other):
                assert answered(sender, receiver, b"%d" % n)
    until(lambda: accepted(b, red) >= 20 and accepted(b, blue) >= 20, "each is counted as itself")
    assert settled(b, "absent") == absent
    assert sum(b.status()["rejected"].values()) == 0


def test_what_has_no_scent_meets_the_strictest_and_is_nobodys(hosts):
    """The gateway itself is no tenant, and red's packets may not come without a scent."""
    gateway, b, red, blue = hosts
    before = [traffic(b, each)["absent"] for each in (red, blue)]
    with gateway.socket(4) as sender, b.socket(4) as receiver:
        assert not answered(sender, receiver, seconds=0.3)
    until(lambda: b.status()["strangers"]["absent"].get("drop"), "counted as a stranger's")
    assert [traffic(b, each)["absent"] for each in (red, blue)] == before


def test_a_quarantine_leaves_the_neighbour_alone(hosts):
    """Blue is attacked and cut off, red goes on; blue is free again when it is over."""
    _, b, red, blue = hosts
    path = "offload" if b.pin_dir else "queue"
    with red.node.socket(4) as one, blue.node.socket(4) as other, b.socket(4) as receiver:
        assert answered(one, receiver)
        assert answered(other, receiver)
        blue.alarm()
        until(lambda: b.resources("quarantine"), "b quarantines")
        (resource,) = b.resources("quarantine")
        assert resource["resource"] == "10.1.0.1 of blue"
        assert "key alone" in resource["text"]
        until(lambda: not answered(other, receiver, seconds=0.2), "blue is cut off")
        for _ in range(10):
            assert answered(one, receiver), "red goes on"
        until(lambda: b.count("other", f"{path}_quarantined"), "its packets are counted")
        until(lambda: answered(other, receiver, seconds=0.2), "blue is free again", 30)
    assert "key alone" in b.cli("explain", "blue", "--json").stdout


def test_an_interface_that_goes_and_comes_back(hosts):
    """A tenant's tap is made anew when its machine starts: it has the name, and another index."""
    gateway, b, red, _ = hosts
    gateway.host.ip(f"link del {red.interface}")
    (inner,) = red.node.host.interfaces
    red.node.host.ip(f"link add {inner} type veth peer name {red.interface} netns {gateway.host.namespace}")
    red.node.host.ip(f"addr add 10.0.0.1/24 dev {inner}", f"link set {inner} up")
    gateway.host.ip(f"addr add 10.0.0.2/24 dev {red.interface}", f"link set {red.interface} up")
    gateway.host.ip(f"route add 10.0.0.0/24 dev {red.interface} table 101")
    red.node.host.ip("route add default via 10.0.0.2")
    with red.node.socket(4) as sender, b.socket(4) as receiver:
        until(lambda: answered(sender, receiver, seconds=0.2), "red is stamped again: b takes nothing unscented")


def profile(b: Node, tenant: Tenant) -> dict | None:
    return next(p["profile"] for p in b.status()["peers"] if p["name"] == tenant.name)


def traffic(b: Node, tenant: Tenant) -> dict:
    return next(t for t in b.status()["traffic"] if t["name"] == tenant.name)


def accepted(b: Node, tenant: Tenant) -> int:
    return traffic(b, tenant)["accepted"]
