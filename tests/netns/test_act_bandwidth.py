"""Rates in the real kernel.

host 10.8.0.1, fd08::1 ------ node 10.8.0.2, fd08::2
"""

import json
from ipaddress import ip_network

import pytest

from scentd import act
from scentd.act import bandwidth
from scentd.act.bandwidth import Bandwidth
from scentd.errors import HostError
from tests.netns.topology import Topology

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
    """The methods of a Bandwidth, called in the host."""
    actuator = Bandwidth(host.interfaces[0], NETWORKS)
    return lambda method, *args: host.call(getattr(actuator, method), *args)


def tc(host, *words):
    return host.out("tc", *words, "dev", host.interfaces[0])


def sent(host, minor):
    """Packets that the class has sent."""
    classes = tc(host, "-s", "class", "show").split("class htb ")
    (text,) = (c for c in classes if c.startswith(f"5ce0:{minor} "))
    return int(text.split(" pkt")[0].split()[-1])


def test_rates_are_there_idempotent_and_changed_in_place(host, shaper):
    assert shaper("have") == {}
    rates = {"node": 10e6, "inner": 5e6, "all": 40e9}
    assert shaper("apply", rates) == 1 + 3 + 8
    assert shaper("have") == rates
    assert shaper("apply", rates) == 0
    filters = tc(host, "filter", "show")
    assert shaper("apply", {**rates, "node": 20e6}) == 1
    assert "rate 20Mbit ceil 20Mbit" in tc(host, "class", "show")
    assert tc(host, "filter", "show") == filters
    assert shaper("apply", {"inner": 5e6}) == 2 + 4 + 2
    assert shaper("have") == {"inner": 5e6}
    assert shaper("apply", {"inner": 5e6, "empty": 1e6}) == 0  # nothing to know it by
    assert shaper("apply", {}) == 1
    assert "htb" not in tc(host, "qdisc", "show")


@pytest.mark.parametrize("family", [4, 6])
def test_the_longest_prefix_wins_and_the_rest_is_direct(host, shaper, family):
    shaper("apply", {"node": 10e6, "inner": 5e6})
    base = "10.8.0." if family == 4 else "fd08::"
    for number, minor in ((2, 1), (7, 2)):
        mac = ("nud", "permanent", "lladdr", "02:00:00:00:00:01")
        host.run("ip", "neigh", "replace", f"{base}{number}", "dev", host.interfaces[0], *mac)
        before = sent(host, 1), sent(host, 2)
        host.run("ping", "-c3", "-i0.05", "-W0.1", f"{base}{number}", check=False)
        after = sent(host, 1), sent(host, 2)
        assert after[minor - 1] - before[minor - 1] == 3
        assert after[2 - minor] == before[2 - minor]
        host.run("ip", "neigh", "del", f"{base}{number}", "dev", host.interfaces[0])


@pytest.mark.parametrize("family", [4, 6])
def test_limits_what_is_sent(net, host, shaper, family):
    node = net.hosts["node"]
    shaper("apply", {"node": 20e6})
    server = node.start("iperf3", "-s", "-1", "-p", f"{5200 + family}", stdout=-3, stderr=-3)
    for _ in range(50):
        if f":{5200 + family}" in node.out("ss", "-ltn"):
            break
    to = node.ipv4 if family == 4 else node.ipv6
    done = host.out("iperf3", "-J", "-C", "cubic", "-t", "1.5", "-c", to, "-p", f"{5200 + family}")
    server.wait(10)
    assert 12e6 < json.loads(done)["end"]["sum_received"]["bits_per_second"] < 24e6


def test_a_change_loses_no_packet(net, host, shaper):
    """Packets wait in a slow class while its rate is changed; all arrive."""
    node = net.hosts["node"]
    shaper("apply", {"node": 100e3})
    receive = (
        "import socket\ns=socket.socket(2,2);s.bind(('10.8.0.2',7100));s.settimeout(10);print('ready',flush=True)\n"
        "print(sum(1 for _ in range(40) if s.recv(2000)))"
    )
    receiver = node.start("python3", "-c", receive, stdout=-1, text=True)
    assert receiver.stdout.readline() == "ready\n"
    host.run(
        "python3", "-c", "import socket;s=socket.socket(2,2)\nfor _ in range(40): s.sendto(b'x'*1000,('10.8.0.2',7100))"
    )
    shaper("apply", {"node": 50e6})
    assert "40" in receiver.communicate(timeout=10)[0]


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
    for method, args in (("apply", ({"node": 1e6},)), ("have", ())):
        with pytest.raises(HostError, match=rf"tbf 7:.*tc qdisc del dev {interface} root"):
            shaper(method, *args)
    assert shaper("remove") is False
    assert host.call(act.cleanup) == []
    assert tc(host, "qdisc", "show") == before
    host.run("tc", "qdisc", "del", "dev", interface, "root")


def test_cleanup_takes_ours_and_is_harmless_twice(host, shaper):
    shaper("apply", {"node": 1e6})
    assert host.call(bandwidth.remove_all, [host.interfaces[0]]) == []
    assert host.call(act.cleanup) == [f"qdisc htb 5ce0: on {host.interfaces[0]}"]
    assert host.call(act.cleanup) == []


def test_what_is_wrong_is_repaired(host, shaper):
    rates = {"node": 10e6, "inner": 5e6}
    shaper("apply", rates)
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
    assert shaper("have") == {"inner": 9e6}
    assert shaper("apply", rates) == 2
    assert shaper("have") == rates


def test_a_missing_interface_is_a_host_error(host):
    with pytest.raises(HostError, match="interface nothere: not there"):
        host.call(Bandwidth("nothere", NETWORKS).apply, {"node": 1e6})
    assert host.call(Bandwidth("nothere", NETWORKS).remove) is False
