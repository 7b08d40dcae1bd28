"""Our routing table in real namespaces.

host ---- 10.1.0.0/24, fd00:1::/64 (1500) ---- near
host ---- 10.2.0.0/24, fd00:2::/64 (1400) ---- other
"""

from __future__ import annotations

import json
import socket

import pytest
from lowered import TABLE, config, full_mtu_is, mtu_of, near_of
from msgspec.structs import replace
from queues import install
from topology import Host

from scentd.config.sections import Config, Datapath, Network, Stamp
from scentd.core import lowered_mtu
from scentd.core.route_tables import Route
from scentd.datapath.host import routes
from scentd.datapath.queue.nfqueue import Queue

pytestmark = pytest.mark.netns


def tables(host: Host) -> str:
    return "".join(
        host.out("ip", family, *what)
        for family in ("-4", "-6")
        for what in (("route", "show", "table", "all"), ("rule", "show"))
    )


def own(host: Host) -> list[Route]:
    return [route for _, route in host.call(routes.read_own)]


def complex_main(host: Host) -> None:
    host.ip(
        "route add default via 10.1.0.2 mtu lock 1300 advmss 1000",
        "route add 10.9.0.0/16 nexthop via 10.1.0.2 weight 3 nexthop via 10.2.0.2 onlink dev other1",
        "route add unreachable 10.10.0.0/16",
        "route add 10.11.0.0/16 via inet6 fd00:1::2 src 10.1.0.1 congctl cubic",
        "route add 10.12.0.0/16 via 10.1.0.2 metric 7",
        "route add 10.12.0.0/16 via 10.2.0.2 metric 9",
        "route add default via fd00:1::2 mtu 1400",
        "route add fd00:9::/32 nexthop via fd00:1::2 nexthop via fd00:2::2",
        "route add unreachable fd00:10::/32",
        "route add fd00:12::/32 from fd00:1::1 via fd00:1::2",
    )


@pytest.mark.netns
def test_sockets_see_the_lowered_mtu_and_stamped_packets_the_full_one(host):
    host.ip("route add 10.8.0.0/16 via 10.2.0.2", "route add fd00:8::/32 via fd00:2::2")
    plan = host.call(routes.apply, config("10.1.0.2", "10.8.0.0/24", "fd00:1::/64", "fd00:8::1"))
    full_mtu_is(host, "10.1.0.2", 1464)
    full_mtu_is(host, "10.8.0.9", 1364)
    full_mtu_is(host, "fd00:1::2", 1460)
    full_mtu_is(host, "fd00:8::1", 1360)
    for stranger in ("10.1.0.3", "10.8.1.9", "fd00:8::2"):
        full_mtu_is(host, stranger, None)
    assert dict(plan.limits()) == {"10.1.0.2/32": 1500, "10.8.0.0/24": 1400, "fd00:1::/64": 1500, "fd00:8::1/128": 1400}


@pytest.mark.netns
def test_a_host_that_signs_nothing_lowers_no_route(host):
    """Without a collector nothing that it sends is ever scented, so nothing needs room."""
    wish = config("10.1.0.2", "fd00:1::/64")
    before = tables(host)
    assert host.call(routes.apply, Config(network=[Network(name="n", key_file="k")], peer=wish.peer)).routes == ()
    assert tables(host) == before
    host.call(routes.apply, wish)
    full_mtu_is(host, "10.1.0.2", 1464)
    host.call(routes.apply, Config(network=[Network(name="n", key_file="k")], peer=wish.peer))  # a reload without
    assert tables(host) == before


@pytest.mark.netns
def test_forwarded_packets_do_not_ask_our_table(host):
    host.sysctl(net_ipv4_ip__forward=1)
    host.call(routes.apply, config("10.1.0.0/24"))
    (found,) = json.loads(host.out("ip", "-j", "route", "get", "10.1.0.2", "from", "10.2.0.2", "iif", "other1"))
    assert not (found.get("metrics") or [{}])[0].get("mtu")


@pytest.mark.netns
def test_without_rules_the_lowered_routes_are_in_the_table_local(host):
    """Our own go in and out of it; the kernel's, and those of others, stay."""
    host.ip("route add 10.77.0.0/16 via 10.1.0.2 table local proto 99")
    before, wish = tables(host), config("10.1.0.2", "10.8.0.0/24", "fd00:1::2")
    host.ip("route add 10.8.0.0/16 via 10.2.0.2")
    plan = host.call(routes.read_plan, wish)
    assert host.call(routes.may_be_rule_free, wish)
    for _ in range(2):
        assert host.call(routes.apply, wish, rule_free=True) == plan
        assert "proto 83" not in host.out("ip", "rule")
        assert [mtu_of(host, to) for to in ("10.1.0.2", "10.8.0.9", "fd00:1::2")] == [1464, 1364, 1460]
        assert {str(r.prefix) for r in own(host)} == {*("10.1.0.2/32", "10.8.0.0/24", "fd00:1::2/128")}
    assert mtu_of(host, "10.1.0.3") is None
    for rule_free in (False, True):
        host.call(routes.apply, wish, rule_free=rule_free)
        assert mtu_of(host, "10.1.0.2") == 1464
        assert ("proto 83" in host.out("ip", "rule")) is not rule_free
        assert ("proto 83" in host.out("ip", "route", "show", "table", "local")) is rule_free
    host.call(routes.remove)
    host.ip("route del 10.8.0.0/16")
    assert tables(host) == before


@pytest.mark.netns
@pytest.mark.parametrize("family", ["-4", "-6"])
def test_rules_of_the_host_come_before_the_table_local(host, family):
    wish = config("10.1.0.2", "fd00:1::2")
    host.run("ip", family, "rule", "add", "pref", "100", "fwmark", "7", "lookup", "main")
    assert not host.call(routes.may_be_rule_free, wish)
    host.run("ip", family, "rule", "del", "pref", "100")
    assert host.call(routes.may_be_rule_free, wish)


@pytest.mark.netns
@pytest.mark.parametrize("peer", ["10.1.0.1", "10.88.0.5", "fd00:1::1"])
def test_no_address_of_our_own_is_given_away(host, peer):
    """Not even if the configuration names it as a peer's."""
    host.ip("route add local 10.88.0.0/16 dev lo", "route add default via 10.1.0.2")
    wish = config("10.1.0.2", peer)
    assert not host.call(routes.may_be_rule_free, wish)
    wish = config("10.1.0.2")
    assert host.call(routes.may_be_rule_free, wish)


@pytest.mark.netns
def test_what_is_forwarded_unscented_is_not_held_to_the_lowered_mtu(host):
    wish = config("10.1.0.2", "fd00:1::2")
    forwarding = replace(wish, stamp=Stamp(forwarded=True))
    for switch in ("net.ipv4.ip_forward", "net.ipv6.conf.near0.forwarding"):
        host.run("sysctl", "-qw", f"{switch}=1")
        assert not host.call(routes.may_be_rule_free, wish)
        assert host.call(routes.may_be_rule_free, forwarding)
        host.run("sysctl", "-qw", f"{switch}=0")
        assert host.call(routes.may_be_rule_free, wish)


@pytest.mark.netns
@pytest.mark.parametrize(
    "peers",
    [
        ("0.0.0.0/0", "::/0"),
        ("10.1.0.2", "fd00:1::2"),
        ("10.1.0.0/25", "10.9.4.0/24", "192.0.2.1", "10.11.1.0/24", "10.10.1.0/24", "10.12.0.0/24"),
        ("10.1.0.0/16", "fd00::/16", "fd00:12::5", "fd00:9:1::/48", "2001:db8::1"),
    ],
)
def test_apply_is_exact_idempotent_and_leaves_nothing_behind(host, peers):
    complex_main(host)
    before = tables(host)
    wish = config(*peers)
    for _ in range(2):
        plan = host.call(routes.apply, wish)
        assert host.call(routes.read_plan, wish) == plan
        assert lowered_mtu.diff(own(host), plan.routes) == ([], [])
    assert [line for line in tables(host).splitlines() if f"table {TABLE}" not in line and "22600" not in line] != []
    rest = [line for line in tables(host).splitlines() if "proto 83" not in line]
    assert set(before.splitlines()) <= set(rest)
    for _ in range(2):
        host.call(routes.remove)
        assert tables(host) == before


@pytest.mark.netns
def test_one_set_of_peers_after_another(host):
    """Every kind of replacement: throw to unicast, one hop to many, and back."""
    complex_main(host)
    before = tables(host)
    wishes = (config("0.0.0.0/0", "::/0"), config("10.9.0.0/16", "10.12.0.1", "fd00:9::/32"), config("10.1.0.2"))
    for wish in (*wishes, *reversed(wishes)):
        plan = host.call(routes.apply, wish)
        assert lowered_mtu.diff(own(host), plan.routes) == ([], [])
    host.ip("route replace 10.9.0.0/16 via 10.2.0.2", "route replace unreachable fd00:9::/32")
    for change in ("unreachable 10.9.0.0/16", "10.9.0.0/16 via 10.1.0.2"):
        host.ip(f"route replace {change}")
        plan = host.call(routes.apply, wishes[0])
        assert lowered_mtu.diff(own(host), plan.routes) == ([], [])
    host.call(routes.apply, Config())  # no peers: neither routes nor rules
    assert tables(host).count("proto 83") == 0
    assert before.count("rule") == tables(host).count("rule")


@pytest.mark.netns
def test_rules_and_routes_of_others_stay(host):
    host.ip("rule add priority 22600 fwmark 7 lookup 99", "rule add priority 100 iif lo lookup 98")
    before = tables(host)
    host.call(routes.apply, config("10.1.0.2"))
    assert "fwmark 0x7" in tables(host)
    host.call(routes.remove)
    assert tables(host) == before


@pytest.mark.netns
def test_a_changed_priority_or_mark_changes_the_rules(host):
    wish = config("10.1.0.2")
    host.call(routes.apply, wish)
    other = Config(network=wish.network, peer=wish.peer, datapath=Datapath(mark_stamped=0x400))
    host.call(routes.apply, other)
    assert host.out("ip", "rule").count("fwmark") == 1
    assert "fwmark 0x400/0x400 goto 22615" in host.out("ip", "rule")


@pytest.mark.netns
@pytest.mark.parametrize(("address", "mss"), [("10.1.0.2", 1464 - 40), ("fd00:1::2", 1460 - 60)])
def test_tcp_leaves_room(host, address, mss):
    """The segment size that the kernel uses, without timestamps; both directions of it."""
    host.sysctl(net_ipv4_tcp__timestamps=0)
    host.call(routes.apply, config("10.1.0.2", "fd00:1::2"))
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        near_of(host).call(lambda: socket.create_server((address, 80), family=family)) as listener,
        host.call(lambda: socket.create_connection((address, 80), timeout=5)) as connected,
    ):
        accepted, _ = listener.accept()
        with accepted:
            connected.sendall(b"x")
            assert accepted.recv(1) == b"x"
            assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) == mss
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) == mss


def grown(packet: bytes) -> bytes:
    """The packet with an IPv4 option or an IPv6 header of the scent's size."""
    if packet[0] >> 4 == 6:
        header = bytes([packet[6], 4, 0x1E, 34]) + bytes(34) + bytes([1, 0])
        length = (len(packet) - 40 + 40).to_bytes(2, "big")
        return packet[:4] + length + bytes([60, packet[7]]) + packet[8:40] + header + packet[40:]
    head = bytearray(packet[:20] + b"\x01" * 36)
    head[0] = 0x4E
    head[2:4] = (len(packet) + 36).to_bytes(2, "big")
    head[10:12] = bytes(2)
    total = sum(int.from_bytes(head[i : i + 2], "big") for i in range(0, 56, 2))
    head[10:12] = (0xFFFF - total % 0xFFFF).to_bytes(2, "big")
    return bytes(head) + packet[20:]


@pytest.mark.netns
@pytest.mark.parametrize(("address", "headers", "overhead"), [("10.1.0.2", 28, 36), ("fd00:1::2", 48, 40)])
@pytest.mark.parametrize("marked", [True, False])
def test_a_full_sized_packet_grows_past_the_lowered_route(host, address, headers, overhead, marked):
    """Queue, rules and routes together. Without the mark the grown packet is too big for its own route."""
    wish = config("10.1.0.2", "fd00:1::2")
    install(host, wish)
    host.call(routes.apply, wish)
    data = b"x" * (1500 - overhead - headers)

    def take(packet) -> None:
        packet.set_payload(grown(packet.get_payload()))
        if marked:
            packet.set_mark(packet.mark | wish.datapath.mark_stamped)
        packet.accept()

    def send() -> None:
        with socket.socket(family, socket.SOCK_DGRAM) as s:
            s.setsockopt(*dont_fragment)
            s.sendto(data, (address, 9))
            queue.run()

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # IP_MTU_DISCOVER, IPV6_MTU_DISCOVER = DO: refused if it did not fit
    dont_fragment = (socket.IPPROTO_IPV6, 23, 2) if ":" in address else (socket.IPPROTO_IP, 10, 2)
    queue = host.call(Queue, wish.datapath.queue, take, 1024, False)
    with near_of(host).call(lambda: socket.socket(family, socket.SOCK_DGRAM)) as s:
        s.bind((address, 9))
        s.settimeout(1 if marked else 0.3)
        host.call(send)
        if marked:
            assert s.recv(2000) == data
        else:
            with pytest.raises(TimeoutError):
                s.recv(2000)
    queue.close()


@pytest.mark.netns
def test_ipv6_without_room_stays_as_it_is(host):
    host.ip("link set near0 mtu 1300")
    plan = host.call(routes.apply, config("10.1.0.2", "fd00:1::2"))
    full_mtu_is(host, "fd00:1::2", None)
    full_mtu_is(host, "10.1.0.2", 1264)
    assert dict(plan.limits())["fd00:1::2/128"] == 1300


@pytest.mark.netns
def test_link_local_neighbours_are_reached_past_a_peer_that_is_everybody(host):
    host.ip("route add default via fd00:1::2")
    host.call(routes.apply, config("::/0"))
    full_mtu_is(host, "2001:db8::1", 1460)
    (found,) = json.loads(host.out("ip", "-j", "route", "get", "fe80::1234", "oif", "near0"))
    assert "gateway" not in found


@pytest.mark.netns
def test_what_else_a_route_says_is_copied(host):
    host.ip(
        "nexthop add id 5 via 10.2.0.2 dev other1",
        "route add 10.8.0.0/16 via 10.1.0.2 realm 7 fastopen_no_cookie 1 quickack 1 congctl cubic",
        "route add 10.9.0.0/16 nhid 5",
        "route add 10.10.0.0/16 nexthop via 10.1.0.2 realms 4 nexthop via 10.2.0.2 realms 5",
        "route add fd00:8::/32 via fd00:1::2 pref high",
    )
    host.call(routes.apply, config("10.8.0.1", "10.9.0.1", "10.10.0.1", "fd00:8::1"))
    copies = host.out("ip", "route", "show", "table", TABLE) + host.out("ip", "-6", "route", "show", "table", TABLE)
    assert "10.8.0.1 via 10.1.0.2" in copies
    for kept in ("realm 7", "fastopen_no_cookie 1", "quickack 1", "congctl cubic", "nhid 5", "realm 4", "pref high"):
        assert kept in copies, kept
    for _ in range(2):
        plan = host.call(routes.apply, config("10.8.0.1", "10.9.0.1", "10.10.0.1", "fd00:8::1"))
        assert lowered_mtu.diff(own(host), plan.routes) == ([], [])


@pytest.mark.netns
def test_a_deletion_that_meets_our_rule_may_be_repeated(host):
    """`ip rule del` without a table finds ours first. A second one finds the host's."""
    host.ip("route add default via 10.1.0.2 table 100", "rule add priority 32000 from 10.1.0.1 lookup 100")
    wish = config("10.8.0.1", "10.1.0.2")
    host.call(routes.apply, wish)
    assert mtu_of(host, "10.8.0.1", "from", "10.1.0.1") == 1464
    host.ip("rule del from 10.1.0.1")
    assert 0 < host.call(routes.follow) <= routes.QUIET
    assert mtu_of(host, "10.1.0.2") is None
    host.ip("rule del from 10.1.0.1")
    assert "10.1.0.1" not in host.out("ip", "rule")
    routes.quiet.clear()
    assert host.call(routes.follow) is None
    assert mtu_of(host, "10.1.0.2") == 1464


@pytest.mark.netns
def test_too_many_tables_have_no_copies(host, caplog):
    for number in range(100, 117):
        host.ip(f"route add default via 10.1.0.2 table {number}", f"rule add from 10.7.0.{number} table {number}")
    for _ in range(2):
        host.call(routes.apply, config("10.8.0.1", "fd00:1::2"))
    assert [mtu_of(host, to) for to in ("10.1.0.2", "fd00:1::2")] == [None, 1460]
    assert caplog.text.count("look up 17 tables") == 1
    host.ip("rule del table 100", "addr add 10.7.0.116/32 dev near0")
    host.call(routes.apply, config("10.8.0.1"))
    assert mtu_of(host, "10.8.0.1", "from", "10.7.0.116") == 1464


@pytest.mark.netns
def test_a_route_that_ends_is_looked_at_again(host):
    host.ip("route add fd00:8::/32 via fd00:1::2 expires 100")
    host.call(routes.apply, config("fd00:8::1"))
    assert 90 < host.call(routes.follow) <= 100
