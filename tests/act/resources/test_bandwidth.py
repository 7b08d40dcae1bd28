"""Classes and filters in the real kernel.

host 10.8.0.1, fd08::1 ------ node 10.8.0.2, fd08::2
"""

import socket
import subprocess
import sys
import time
from ipaddress import ip_network

import pytest
from shaping import MBIT, PEERS, bandwidth, priority
from topology import Topology

from scentd.act.resources.backend import Refused
from scentd.act.resources.bandwidth import BandwidthBackend, BandwidthResource
from scentd.act.resources.bandwidth_priority import ABOVE_ALL, BandwidthPriority
from scentd.config.schema import convert
from scentd.errors import HostError

pytestmark = pytest.mark.netns

LINK = 40 * MBIT
NESTED = {
    "node": (ip_network("10.8.0.0/24"), ip_network("fd08::/64")),
    "inner": (ip_network("10.8.0.7/32"), ip_network("fd08::7/128")),
    "all": (ip_network("0.0.0.0/0"), ip_network("::/0"), ip_network("10.9.0.0/20"), ip_network("fd09:0:0:1:8000::/65")),
}


@pytest.fixture(scope="module")
def net():
    with Topology("bw") as made:
        host, node = made.host("host"), made.host("node")
        made.link(host, node, ipv4="10.8.0.0/24", ipv6="fd08::/64")
        yield made.hosts


@pytest.fixture
def host(net):
    yield net["host"]
    net["host"].call(BandwidthBackend.remove_all)


def tc(host, *words, device=None):
    return host.out("tc", *words, "dev", device or host.interfaces[0])


def device_in(host):
    return f"sc-in{host.call(socket.if_nametoindex, host.interfaces[0])}"


def sent(host, minor):
    """Packets that the class has sent so far."""
    classes = tc(host, "-s", "class", "show").split("class htb ")
    (text,) = (c for c in classes if c.startswith(f"5ce0:{minor} "))
    return int(text.split(" pkt")[0].split()[-1])


@pytest.mark.parametrize("direction", ["out", "in"])
def test_amounts_are_there_idempotent_and_changed_in_place(host, direction):
    with bandwidth(host, peers=NESTED, link=40e9, direction=direction) as ceilings:
        assert ceilings.observe() == {}
        amounts = {"node": 10 * MBIT, "inner": 5 * MBIT, "all": 40e9}
        ceilings.change(**amounts)
        assert ceilings.observe() == amounts
        device = host.interfaces[0] if direction == "out" else device_in(host)
        filters = tc(host, "filter", "show", device=device)
        before = ceilings.backend.setting.tally.all()
        ceilings.change(**amounts)
        ceilings.change(node=20 * MBIT, inner=12345)  # no multiple of 8
        assert ceilings.observe() == {**amounts, "node": 20 * MBIT, "inner": 12345}
        assert tc(host, "filter", "show", device=device) == filters
        assert "rate 8Kbit ceil 20Mbit" in tc(host, "class", "show", device=device)
        assert ceilings.backend.setting.tally.all() == before


def test_kinds_on_one_interface_leave_each_others_parts_alone(host):
    with bandwidth(host) as ceilings, bandwidth(host, "guarantee") as guarantees, priority(host) as first:
        assert first.observe() == {"left": ABOVE_ALL, "right": ABOVE_ALL}
        ceilings.change(left=10 * MBIT)
        assert ceilings.observe() == {"left": 10 * MBIT, "right": LINK}
        assert guarantees.observe() == {"left": 8000, "right": 8000}
        assert first.observe() == {"left": 0, "right": 0}
        guarantees.change(left=5 * MBIT, right=6 * MBIT)
        first.change(right=7)
        ceilings.change(left=9 * MBIT, right=20 * MBIT)
        assert guarantees.observe() == {"left": 5 * MBIT, "right": 6 * MBIT}
        assert first.observe() == {"left": 0, "right": 7}
        assert ceilings.observe() == {"left": 9 * MBIT, "right": 20 * MBIT}


@pytest.mark.parametrize("family", [4, 6])
def test_the_longest_prefix_wins_and_the_rest_is_direct(host, family):
    """Counted where they are sent; the neighbours are made up."""
    peers = {name: NESTED[name] for name in ("node", "inner")}
    outer, inner, rest = ("10.8.0.9", "10.8.0.7", "10.66.0.1") if family == 4 else ("fd08::9", "fd08::7", "fd66::1")
    with bandwidth(host, peers=peers) as ceilings:
        ceilings.change(node=10 * MBIT)
        host.ip(f"route replace {rest} dev {host.interfaces[0]}")
        for address in (outer, inner, rest):
            host.ip(f"neigh replace {address} lladdr 02:00:00:00:00:01 nud permanent dev {host.interfaces[0]}")
        with host.call(socket.socket, socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as sender:
            for address, expected in ((outer, (3, 0)), (inner, (3, 3)), (rest, (3, 3))):
                for _ in range(3):
                    sender.sendto(b"x", (address, 9))
                assert (sent(host, 1), sent(host, 2)) == expected


def test_a_thousand_peers_and_each_gets_its_class(host):
    peers = {
        f"p{n}": (ip_network(f"10.{20 + n // 250}.{n % 250}.0/24"), ip_network(f"fd20:0:{n:x}::/48"))
        for n in range(1000)
    }
    with bandwidth(host, peers=peers) as ceilings:
        amounts = {peer: float(10_000 + 8 * n) for n, peer in enumerate(peers)}
        ceilings.change(**amounts)
        assert ceilings.observe() == amounts
        assert ceilings.backend.setting.tally.all() == {"bandwidth_built": 1 + 1000 + 4 + 2000}
        to = "10.21.7.1"
        host.ip(f"route replace {to} dev {host.interfaces[0]}")
        host.ip(f"neigh replace {to} lladdr 02:00:00:00:00:01 nud permanent dev {host.interfaces[0]}")
        with host.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", (to, 9))
        assert sent(host, f"{258:x}") == 1
        with bandwidth(host, peers={"p7": peers["p7"]}) as fewer:  # a reload: the name is the same
            assert fewer.observe() == {"p7": amounts["p7"]}
            fewer.change(p7=10_000)
            assert tc(host, "class", "show").count("class htb") == 1000 + 1
            host.run("tc", "filter", "del", "dev", host.interfaces[0], "parent", "5ce0:", "prio", "108")
            fewer.change(p7=10_000)
            assert fewer.observe() == {}
            fewer.change(p7=10_000)
            assert fewer.observe() == {"p7": 10_000}
            assert tc(host, "class", "show").count("class htb") == 2


def test_a_change_loses_no_packet(net, host):
    """Packets wait in a slow class while its ceiling is changed; all arrive."""
    node = net["node"]
    with (
        bandwidth(host, peers={"node": NESTED["node"]}) as ceilings,
        node.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        host.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        ceilings.change(node=100e3)
        receiver.bind((node.ipv4, 7100))
        receiver.settimeout(5)
        start = time.monotonic()
        for _ in range(40):
            sender.sendto(b"x" * 1000, (node.ipv4, 7100))
        ceilings.change(node=LINK)
        for _ in range(40):
            receiver.recv(2000)
        assert time.monotonic() - start < 2  # at the old rate it takes 3.3 s


def break_class(host, device):
    host.run(*f"tc class change dev {device} parent 5ce0:ffff classid 5ce0:1 htb rate 8kbit ceil 9mbit prio 7".split())


def break_filter(host, device):
    host.run(*f"tc filter del dev {device} parent 5ce0: prio 100".split())


def break_hash(host, device):
    """The filter that leads to the hash table goes; table and prefixes stay."""
    shown = host.out("tc", "filter", "show", "dev", device, "parent", "5ce0:", "prio", "200")
    way = next(line.split("fh ")[1].split()[0] for line in shown.splitlines() if " link " in line)
    host.run(*f"tc filter del dev {device} parent 5ce0: prio 200 protocol ipv6 handle {way} u32".split())


def break_link(host, device):
    host.run(*f"tc class change dev {device} parent 5ce0: classid 5ce0:ffff htb rate 9mbit".split())


def break_root(host, device):
    host.run("tc", "qdisc", "del", "dev", device, "root")


def halve(host, device):
    """As after a kill between the classes and the filters."""
    break_root(host, device)
    host.run(*f"tc qdisc add dev {device} root handle 5ce0: htb".split())
    host.run(*f"tc class add dev {device} parent 5ce0: classid 5ce0:ffff htb rate 40mbit".split())
    host.run(*f"tc class add dev {device} parent 5ce0:ffff classid 5ce0:1 htb rate 8kbit ceil 7mbit".split())


def earlier_version(host, device):
    break_root(host, device)
    host.run(*f"tc qdisc add dev {device} root handle 5ce0: htb".split())
    host.run(*f"tc class add dev {device} parent 5ce0: classid 5ce0:1 htb rate 9mbit".split())
    match = "u32 match ip dst 10.8.0.2/32 flowid 5ce0:1"
    host.run(*f"tc filter add dev {device} parent 5ce0: prio 100 protocol ip {match}".split())


BREAKS = (break_class, break_filter, break_hash, break_link, break_root, halve, earlier_version)


@pytest.mark.parametrize("breakage", BREAKS)
def test_what_is_wrong_is_seen_and_mended(host, breakage):
    amounts = {"left": 10 * MBIT, "right": 5 * MBIT}
    with bandwidth(host, drift="correct") as ceilings:
        ceilings.change(**amounts)
        before = [len(tc(host, what, "show").splitlines()) for what in ("class", "filter")]
        breakage(host, host.interfaces[0])
        found = ceilings.observe()
        assert found != amounts
        ceilings.change(**{peer: amount for peer, amount in amounts.items() if found.get(peer) != amount})
        assert ceilings.observe() == amounts
        assert [len(tc(host, what, "show").splitlines()) for what in ("class", "filter")] == before


@pytest.mark.parametrize(
    "breakage",
    ["link set {device} down", "link del {device}", "tc filter del dev {interface} ingress prio 60006"],
)
def test_what_no_longer_leads_in_is_mended(host, breakage):
    with bandwidth(host, direction="in") as ceilings:
        ceilings.change(left=10 * MBIT)
        command = breakage.format(device=device_in(host), interface=host.interfaces[0])
        host.run(*(command if command.startswith("tc") else f"ip {command}").split())
        assert ceilings.observe() == {}
        ceilings.change(left=10 * MBIT)
        assert ceilings.observe()["left"] == 10 * MBIT


def test_whoever_looked_at_what_comes_in_still_does_and_once(net, host):
    """A filter of somebody else, as our verifier's, in front of ours: it copies what it sees to another interface."""
    interface = host.interfaces[0]
    host.ip("link add copies type veth peer name copied", "link set copies up", "link set copied up")
    host.run(*f"tc qdisc add dev {interface} clsact".split())
    copy = "u32 match ip dst 10.8.0.1 action mirred egress mirror dev copies continue"
    host.run(*f"tc filter add dev {interface} ingress prio 22600 protocol ip {copy}".split())
    with bandwidth(host, direction="in", peers=NESTED) as ceilings:
        ceilings.change(node=10 * MBIT)
        with net["node"].call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sender:
            before = int(host.out("cat", "/sys/class/net/copied/statistics/rx_bytes"))
            for _ in range(5):
                sender.sendto(bytes(1000), (host.ipv4, 9))
        copied = int(host.out("cat", "/sys/class/net/copied/statistics/rx_bytes")) - before
        assert 5 * 1000 < copied < 6 * 1000
    host.ip("link del copies")
    removed = host.call(BandwidthBackend.remove_all)
    assert len(removed) == 2
    assert "clsact" in tc(host, "qdisc", "show")  # it has the filter of somebody else
    host.run(*f"tc qdisc del dev {interface} clsact".split())


def test_another_qdisc_is_refused_and_left_alone(host):
    interface = host.interfaces[0]
    host.run(*f"tc qdisc add dev {interface} root handle 7: tbf rate 1gbit burst 64kb latency 50ms".split())
    before = tc(host, "qdisc", "show")
    with bandwidth(host) as ceilings:
        with pytest.raises(Refused, match=rf"tbf 7:.*tc qdisc del dev {interface} root"):
            ceilings.change(left=MBIT)
        with pytest.raises(Refused, match="tbf 7:"):
            ceilings.observe()
    assert host.call(BandwidthBackend.remove_all) == []
    assert tc(host, "qdisc", "show") == before
    host.run("tc", "qdisc", "del", "dev", interface, "root")


def test_all_is_removed_and_twice_is_harmless(host):
    with bandwidth(host) as ceilings, bandwidth(host, direction="in") as inward:
        ceilings.change(left=MBIT)
        inward.change(left=MBIT)
    device = device_in(host)
    assert host.call(BandwidthBackend.remove_all) == [
        f"what comes in at {host.interfaces[0]}, led to {device}",
        f"device {device}",
        f"qdisc htb 5ce0: on {host.interfaces[0]}",
    ]
    assert host.call(BandwidthBackend.remove_all) == []
    assert "htb" not in tc(host, "qdisc", "show")
    assert "clsact" not in tc(host, "qdisc", "show")


def test_peers_that_share_an_address(host):
    """A prefix leads to one class, that of the first."""
    shared = {"left": PEERS["left"], "copy": PEERS["left"], "none": ()}
    with bandwidth(host, peers=shared) as ceilings:
        ceilings.change(left=MBIT)
        for peer in ("copy", "none"):
            with pytest.raises(Refused, match=f"peer {peer} has no addresses of its own"):
                ceilings.change(**{peer: MBIT})
        assert ceilings.observe() == {"left": MBIT}


def test_a_missing_interface_is_told(host):
    with bandwidth(host, interface="nothere") as ceilings:
        with pytest.raises(HostError, match="interface nothere: does not exist"):
            ceilings.change(left=MBIT)
        section = ceilings.backend.resource
        assert "nothere is not there now" in host.call(BandwidthBackend.notes, [section])[0]


def test_without_rights_it_says_what_is_missing():
    script = (
        "import sys; sys.path.insert(0, 'tests'); from shaping import *\n"
        "section = BandwidthResource(name='c', interface='lo', link=1e9, maximum=1e9)\n"
        "BandwidthBackend(section, setting(PEERS)).change('left', 1e6)"
    )
    argv = [
        "unshare",
        "-n",
        "setpriv",
        "--bounding-set=-net_admin",
        "--inh-caps=-all",
        sys.executable,
        "-c",
        script,
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert "Refused: interface lo: scentd needs CAP_NET_ADMIN" in done.stderr


def test_two_links_on_one_interface_are_noted():
    sections = [BandwidthResource(name=str(link), interface="lo", link=link, maximum=MBIT) for link in (MBIT, 2 * MBIT)]
    [note] = BandwidthBackend.notes(sections)
    assert "its link differs from that of" in note


def loaded(section_type, **fields):
    problems = []
    section = convert({"name": "x", "interface": "eth0", **fields}, section_type, "resource[0]", problems, {})
    return section, "\n".join(problems)


def test_what_may_be_written():
    section, problems = loaded(BandwidthResource, kind="bandwidth", link="1gbit", maximum="500mbit", peer="left")
    assert problems == ""
    assert (section.usual, section.amount_text(section.usual)) == (500 * MBIT, "500mbit")
    assert section.parse_amount("2.5mbit") == 2.5 * MBIT
    assert section.amount_text(100) == "100bit"
    guarantee, _ = loaded(BandwidthResource, what="guarantee", link="1gbit", maximum="500mbit", minimum="1mbit")
    assert guarantee.usual == MBIT
    first, problems = loaded(BandwidthPriority, link="1gbit")
    assert (first.maximum, first.usual, problems) == (7, 0, "")


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        (BandwidthResource, {"maximum": "2gbit"}, "maximum: is above resource[0].link"),
        (BandwidthResource, {"maximum": "1mbit", "minimum": "1bit"}, "minimum: HTB knows no rate below 8kbit"),
        (BandwidthResource, {"maximum": "1mbit", "link": "0mbit"}, "link: must be more than 0"),
        (BandwidthResource, {"maximum": "1mbit", "interface": "a/b"}, "is no interface's name"),
        (BandwidthResource, {"maximum": "1mbit", "what": "much"}, 'one of "ceiling", "guarantee"'),
        (BandwidthPriority, {"maximum": 8.0}, "HTB knows 8 priorities"),
        (BandwidthPriority, {"normal": 1.5}, "1.5 is no whole number"),
    ],
)
def test_mistakes_say_the_way_out(kind, fields, expected):
    assert expected in loaded(kind, **{"link": "1gbit", **fields})[1]
