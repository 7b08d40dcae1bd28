"""What doctor says of a host's `ip rule`s."""

from __future__ import annotations

import pytest
from lowered import config
from topology import Topology

from scentd.config.sections import Config
from scentd.doctor.routing import check_narrow, check_routing

pytestmark = pytest.mark.netns


@pytest.fixture
def host():
    with Topology("droute") as net:
        yield net.host("host")


@pytest.mark.netns
@pytest.mark.parametrize(
    ("rules", "text"),
    [
        ((), ""),
        (("not fwmark 51820 table 100", "from 10.1.0.1 table 100"), ""),
        (("pref 5 fwmark 0/0x10000000 table 100", "pref 6 table 101"), "priority 5 sees the bit"),
        (("uidrange 1000-1000 table 100",), "asks for users"),
    ],
)
def test_what_rules_mean_for_scents(host, rules, text):
    for rule in rules:
        host.run("ip", "rule", "add", *rule.split())
    check = host.call(check_routing, config("10.1.0.2"))
    assert check.ok == ("warning" if text else "yes")
    assert text in check.found


@pytest.mark.netns
def test_who_stamps_nothing_needs_nothing(host):
    assert check_routing(Config()).ok == "yes"


@pytest.mark.netns
@pytest.mark.parametrize(
    ("mtu", "peer", "text"),
    [
        (1500, "10.1.0.2", ""),
        (1320, "fd00:1::2", ""),
        (1319, "fd00:1::2", "carries 1319 bytes, so TCP is kept to segments of 1219"),
        (1280, "fd00:1::2", "segments of 1180"),
        (611, "10.1.0.2", "segments of 535"),
        (612, "10.1.0.2", ""),
    ],
)
def test_paths_that_leave_no_room_for_scents(mtu, peer, text):
    with Topology("dnarrow") as net:
        host = net.host("host")
        net.link(host, net.host("near"), ipv4="10.1.0.0/24", ipv6="fd00:1::/64" if mtu >= 1280 else "", mtu=mtu)
        check = host.call(check_narrow, config(peer))
    assert check.ok == ("warning" if text else "yes")
    assert text in check.found
    assert not text or "tcp_mtu_probing" in check.way_out


def test_without_stamping_no_room_is_needed():
    assert check_narrow(Config()).ok == "yes"
