"""Rates in the real kernel.

host 10.8.0.1, fd08::1 ------ node 10.8.0.2, fd08::2
"""

import json
import socket
import subprocess
import time
from ipaddress import ip_network

import pytest
from topology import Topology

from scentd import act
from scentd.act import bandwidth
from scentd.act.bandwidth import Shaper
from scentd.errors import HostError

pytestmark = pytest.mark.netns

NETWORKS = {
    "node": (ip_network("10.8.0.0/24"), ip_network("fd08::/64")),
    "inner": (ip_network("10.8.0.7/32"), ip_network("fd08::7/128")),
    "all": (ip_network("0.0.0.0/0"), ip_network("::/0"), ip_network("10.9.0.0/20"), ip_network("fd09:0:0:1:8000::/65")),
    "empty": (),
}


@pytest.fixture(scope="module")
def net():
    with Topology("actb") as made:
        host, node = made.host("host"), made.host("node")
        made.link(host, node, ipv4="10.8.0.0/24", ipv6="fd08::/64")
        yield made


@pytest.fixture
def host(net):
    yield net.hosts["host"]
    net.hosts["host"].call(act.cleanup)


@pytest.fixture
def shaper(host):
    """The methods of a Shaper, called in the host."""
    actuator = Shaper(host.interfaces[0], NETWORKS)
    return lambda method, *args: host.call(getattr(actuator, method), *args)


def tc(host, *words):
    return host.out("tc", *words, "dev", host.interfaces[0])


def sent(host, minor):
    """Packets that the class has sent so far."""
    classes = tc(host, "-s", "class", "show").split("class htb ")
    (text,) = (c for c in classes if c.startswith(f"5ce0:{minor} "))
    return int(text.split(" pkt")[0].split()[-1])


def test_rates_are_there_idempotent_and_changed_in_place(host, shaper):
    assert shaper("read_rates") == {}
    rates = {"node": 10e6, "inner": 5e6, "all": 40e9}
    assert shaper("shape", rates) == 1 + 3 + 8
    assert shaper("read_rates") == rates
    assert shaper("shape", rates) == 0
    filters = tc(host, "filter", "show")
    assert shaper("shape", {**rates, "node": 20e6}) == 1
    assert "rate 20Mbit ceil 20Mbit" in tc(host, "class", "show")
    assert tc(host, "filter", "show") == filters
    assert shaper("shape", {"inner": 5e6}) == 2 + 4 + 2
    assert shaper("read_rates") == {"inner": 5e6}
    assert shaper("shape", {"inner": 5e6, "empty": 1e6}) == 0  # nothing to know it by
    assert shaper("shape", {}) == 1
    assert "htb" not in tc(host, "qdisc", "show")


@pytest.mark.parametrize("family", [4, 6])
def test_the_longest_prefix_wins_and_the_rest_is_direct(host, shaper, family):
    """Counted where they are sent; the neighbours are made up."""
    shaper("shape", {"node": 10e6, "inner": 5e6})
    outer, inner, rest = ("10.8.0.9", "10.8.0.7", "10.66.0.1") if family == 4 else ("fd08::9", "fd08::7", "fd66::1")
    host.ip(f"route replace {rest} dev {host.interfaces[0]}")
    for address in (outer, inner, rest):
        host.ip(f"neigh replace {address} lladdr 02:00:00:00:00:01 nud permanent dev {host.interfaces[0]}")
    with host.call(socket.socket, socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        for address, expected in ((outer, (3, 0)), (inner, (3, 3)), (rest, (3, 3))):
            for _ in range(3):
                sender.sendto(b"x", (address, 9))
            assert (sent(host, 1), sent(host, 2)) == expected


@pytest.mark.parametrize("family", [4, 6])
def test_limits_what_is_sent(net, host, shaper, family):
    node = net.hosts["node"]
    shaper("shape", {"node": 20e6})
    server = node.start("iperf3", "-s", "-1", "-p", f"{5200 + family}", stdout=subprocess.DEVNULL)
    while f":{5200 + family}" not in node.out("ss", "-ltn"):
        assert server.poll() is None
    to = node.ipv4 if family == 4 else node.ipv6
    done = host.out("iperf3", "-J", "-C", "cubic", "-t", "1.5", "-c", to, "-p", f"{5200 + family}")
    server.wait(10)
    assert 12e6 < json.loads(done)["end"]["sum_received"]["bits_per_second"] < 24e6


def test_a_change_loses_no_packet(net, host, shaper):
    """Packets wait in a slow class while its rate is changed; all arrive."""
    node = net.hosts["node"]
    shaper("shape", {"node": 100e3})
    with (
        node.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        host.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind((node.ipv4, 7100))
        receiver.settimeout(5)
        start = time.monotonic()
        for _ in range(40):
            sender.sendto(b"x" * 1000, (node.ipv4, 7100))
        shaper("shape", {"node": 50e6})
        for _ in range(40):
            receiver.recv(2000)
        assert time.monotonic() - start < 2  # at the old rate it takes 3.3 s


def test_another_qdisc_is_refused_and_left_alone(host, shaper):
    interface = host.interfaces[0]
    host.run(
        "tc",
        "qdisc",
        "add",
        "dev",
        interface,
        "root",
        "handle",
        "7:",
        "tbf",
        "rate",
        "1gbit",
        "burst",
        "64kb",
        "latency",
        "50ms",
    )
    before = tc(host, "qdisc", "show")
    for method, args in (("shape", ({"node": 1e6},)), ("read_rates", ())):
        with pytest.raises(HostError, match=rf"tbf 7:.*tc qdisc del dev {interface} root"):
            shaper(method, *args)
    assert shaper("remove") is False
    assert host.call(act.cleanup) == []
    assert tc(host, "qdisc", "show") == before
    host.run("tc", "qdisc", "del", "dev", interface, "root")


def test_cleanup_takes_ours_and_is_harmless_twice(host, shaper):
    shaper("shape", {"node": 1e6})
    assert host.call(bandwidth.remove_everywhere, [host.interfaces[0]]) == []
    assert host.call(act.cleanup) == [f"qdisc htb 5ce0: on {host.interfaces[0]}"]
    assert host.call(act.cleanup) == []


def test_what_is_wrong_is_repaired(host, shaper):
    rates = {"node": 10e6, "inner": 5e6}
    shaper("shape", rates)
    host.run("tc", "filter", "del", "dev", host.interfaces[0], "parent", "5ce0:", "prio", "108")  # 10.8.0.0/24
    host.run(
        "tc",
        "class",
        "change",
        "dev",
        host.interfaces[0],
        "parent",
        "5ce0:",
        "classid",
        "5ce0:2",
        "htb",
        "rate",
        "9mbit",
    )
    assert shaper("read_rates") == {"inner": 9e6}
    assert shaper("shape", rates) == 2
    assert shaper("read_rates") == rates


def test_a_missing_interface_is_a_host_error(host):
    with pytest.raises(HostError, match="interface nothere: does not exist"):
        host.call(Shaper("nothere", NETWORKS).shape, {"node": 1e6})
    assert host.call(Shaper("nothere", NETWORKS).remove) is False
