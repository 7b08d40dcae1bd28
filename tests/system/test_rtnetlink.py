"""What many messages at once say of a namespace is what pyroute2 says, one by one."""

from __future__ import annotations

import errno
import socket
from struct import pack

import pytest
from pyroute2 import IPRoute
from topology import Host, Topology

from scentd.system import rtnetlink
from scentd.system.rtnetlink import NetlinkRequest

pytestmark = pytest.mark.netns

COUNT = 70  # more than travel together
PLAIN = ("IFLA_IFNAME", "IFLA_MTU", "IFLA_LINK", "IFLA_MASTER", "IFLA_GSO_MAX_SIZE", "IFLA_LINK_NETNSID")


@pytest.fixture(scope="module")
def host():
    with Topology("rtnl") as net:
        made = net.host("host")
        made.ip(
            *(f"link add v{n} type veth peer name w{n}" for n in range(COUNT)),
            "link add br0 type bridge nf_call_iptables 1",
            "link set v0 master br0",
            "link add mv0 link v1 type macvlan mode passthru",
            "addr add 10.9.0.1/24 dev v2",
            "addr add fd00:9::1/64 dev v2 nodad",
            "link set v2 up",
            "link set w2 up",
            "route add 10.77.0.0/16 via 10.9.0.2",
            "route add 10.78.0.0/16 via 10.9.0.2 table 99 proto 83",
        )
        yield made


def theirs(host: Host) -> list:
    def read() -> list:
        with IPRoute() as ip:
            return list(ip.get_links())

    return host.call(read)


def test_interfaces(host):
    found = host.call(rtnetlink.links)
    messages = {message["index"]: message for message in theirs(host)}
    assert found.keys() == messages.keys()
    assert len(found) > 2 * COUNT
    for index, link in found.items():
        message = messages[index]
        assert [link[name] for name in ("index", "ifi_type", "flags")] == [
            message[name] for name in ("index", "ifi_type", "flags")
        ]
        assert [link.get_attr(name) for name in PLAIN] == [message.get_attr(name) for name in PLAIN]
        inet6 = link.get_attr("IFLA_AF_SPEC").get_attr("AF_INET6").get_attr("IFLA_INET6_CONF")
        wanted = message.get_attr("IFLA_AF_SPEC").get_attr("AF_INET6").get_attr("IFLA_INET6_CONF")
        assert inet6["mtu"] == wanted["mtu"]


def test_what_is_nested(host):
    by_name = {
        link.get_attr("IFLA_IFNAME"): link.get_attr("IFLA_LINKINFO") for link in host.call(rtnetlink.links).values()
    }
    assert by_name["lo"] is None
    assert by_name["w0"].get_attr("IFLA_INFO_KIND") == "veth"
    assert by_name["v0"].get_attr("IFLA_INFO_SLAVE_KIND") == "bridge"
    assert by_name["br0"].get_attr("IFLA_INFO_DATA").get_attr("IFLA_BR_NF_CALL_IPTABLES") == 1
    assert by_name["mv0"].get_attr("IFLA_INFO_DATA").get_attr("IFLA_MACVLAN_MODE") == 8


def test_a_change_of_state_is_told_from_others(host):
    def one() -> rtnetlink.LinkMessage:
        links = host.call(rtnetlink.links).values()
        return next(link for link in links if link.get_attr("IFLA_IFNAME") in ("v3", "v3x"))

    before = one()
    host.ip("link set v3 up mtu 1400")
    assert one().is_like(before)
    host.ip("link set v3 down", "link set v3 name v3x")
    assert not one().is_like(before)
    host.ip("link set v3x name v3", "link set v3 master br0")
    assert not one().is_like(before)


def test_addresses(host):
    index = host.call(socket.if_nametoindex, "v2")
    assert {(index, "10.9.0.1"), (index, "fd00:9::1")} <= host.call(rtnetlink.addresses)
    assert not [address for _, address in host.call(rtnetlink.addresses) if address in ("127.0.0.1", "::1")]


def test_routes(host):
    def destinations(table: int, protocol: int = 0) -> set[tuple[int, int]]:
        return {rtnetlink.destination_of(b) for b in host.call(rtnetlink.routes, socket.AF_INET, table, protocol)}

    assert destinations(254) == {(0x0A090000, 24), (0x0A4D0000, 16)}
    assert destinations(99) == destinations(99, 83) == {(0x0A4E0000, 16)}
    assert destinations(99, 84) == destinations(98) == set()


def test_requests_that_travel_together_have_an_answer_each(host):
    """A change of the MTU of each; every third interface is none."""
    indexes = [link["index"] for link in host.call(rtnetlink.links).values() if link.get_attr("IFLA_IFNAME")[0] == "w"]
    wanted = [1 << 30 if n % 3 == 0 else index for n, index in enumerate(indexes)]
    mtu = rtnetlink.attribute(4, pack("=I", 1300))
    requests = [NetlinkRequest(rtnetlink.RTM_NEWLINK, 0, rtnetlink.LINK.pack(0, 0, i, 0, 0) + mtu) for i in wanted]
    codes = host.call(rtnetlink.perform, requests)
    assert [code == 0 for code in codes] == [n % 3 != 0 for n in range(len(indexes))]
    assert set(codes) == {0, errno.ENODEV}
    links = host.call(rtnetlink.links)
    assert {links[i].get_attr("IFLA_MTU") for i in wanted if i in links} == {1300}


def test_qdiscs(host):
    host.run("tc", "qdisc", "add", "dev", "v4", "clsact")
    index = host.call(socket.if_nametoindex, "v4")
    (found,) = (q for q in host.call(rtnetlink.qdiscs) if q.interface == index and q.kind == "clsact")
    assert (found.handle, found.parent) == (0xFFFF0000, 0xFFFFFFF1)
