"""Which interfaces of a host programs are attached to."""

from __future__ import annotations

import socket

import pytest
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from topology import Topology

from scentd.datapath.offload import attach

pytestmark = pytest.mark.netns


def test_interfaces():
    with Topology("interfaces") as net:
        host = net.host("host")
        host.ip(
            "link add plain type veth peer name other",
            "link add br0 type bridge",
            "link add port type veth peer name far",
            "link set port master br0",
            "tuntap add tun0 mode tun",
        )
        switches = [f"net.bridge.bridge-nf-call-{program}" for program in ("iptables", "ip6tables")]
        host.run("sysctl", "-qw", *(f"{name}=0" for name in switches), check=False)  # there with br_netfilter alone
        found = {i.name: (i.header, i.port) for i in host.call(attach.read_interfaces)}
        plain = dict.fromkeys(("plain", "br0", "far"), (14, False))
        assert found.items() >= (plain | {"tun0": (0, False), "port": (14, True)}).items()
        assert "lo" not in found
        host.ip("link set br0 type bridge nf_call_ip6tables 1")
        found = {i.name: i for i in host.call(attach.read_interfaces)}
        assert found["br0"].header is None, "br_netfilter"
        assert "port" not in found, "the queue sees what the bridge forwards"
        assert found["tun0"].number == host.call(socket.if_nametoindex, "tun0")


@pytest.mark.parametrize(("kind", "free"), [("vrf", True), ("bridge", False), ("bond", False)])
def test_masters(kind, free):
    message = ifinfmsg()
    more = {"attrs": [("IFLA_INFO_SLAVE_KIND", kind)]}
    message.setvalue({"attrs": [("IFLA_MASTER", 7), ("IFLA_LINKINFO", more)]})
    message.encode()
    received = ifinfmsg(message.data)
    received.decode()
    assert attach.is_free(received) is free
