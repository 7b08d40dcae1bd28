"""What peers really get of a short link: TCP streams through the kernel's HTB, in namespaces."""

import pytest
from shaping import MBIT, bandwidth, priority, streams
from topology import Topology

from scentd.act.resources.bandwidth import BandwidthBackend

pytestmark = pytest.mark.netns

LINK = 40 * MBIT


@pytest.fixture(scope="module")
def net():
    with Topology("bws") as made:
        hosts = [made.host(name) for name in ("host", "left", "right")]
        made.bridge(hosts, ipv4="10.8.0.0/24", ipv6="fd08::/64")
        yield made.hosts


@pytest.fixture
def host(net):
    yield net["host"]
    net["host"].call(BandwidthBackend.remove_all)


@pytest.mark.parametrize("family", [4, 6])
def test_equal_guarantees_get_equal_shares_and_one_alone_gets_all(net, host, family):
    with bandwidth(host, "guarantee") as guarantees:
        guarantees.change(left=10 * MBIT, right=10 * MBIT)
        first, second = streams((host, net["left"]), (host, net["right"]), family=family)
        assert first == pytest.approx(second, rel=0.15)
        assert 0.8 * LINK < first + second < 1.1 * LINK
        [alone] = streams((host, net["left"]), family=family)
        assert 0.8 * LINK < alone < 1.1 * LINK


def test_a_guarantee_is_kept_and_the_rest_is_shared_equally(net, host):
    with bandwidth(host, "guarantee") as guarantees:
        guarantees.change(left=20 * MBIT, right=4 * MBIT)
        first, second = streams((host, net["left"]), (host, net["right"]))
        assert first - second == pytest.approx(16 * MBIT, rel=0.3)


def test_the_higher_priority_gets_the_rest_first(net, host):
    with bandwidth(host, "guarantee") as guarantees, priority(host) as first:
        guarantees.change(left=5 * MBIT, right=5 * MBIT)
        first.change(left=0, right=3)
        to_left, to_right = streams((host, net["left"]), (host, net["right"]))
        assert to_right > 0.75 * LINK
        assert 2.5 * MBIT < to_left < 0.2 * LINK
        first.change(left=3, right=0)
        to_left, to_right = streams((host, net["left"]), (host, net["right"]))
        assert to_left > 0.75 * LINK


@pytest.mark.parametrize("family", [4, 6])
def test_a_narrowed_ceiling_holds_and_the_other_gets_what_it_leaves(net, host, family):
    with bandwidth(host) as ceilings:
        ceilings.change(left=LINK, right=LINK)
        ceilings.change(left=8 * MBIT)
        first, second = streams((host, net["left"]), (host, net["right"]), family=family)
        assert 0.6 * 8 * MBIT < first < 1.15 * 8 * MBIT
        assert 0.6 * LINK < second < 0.95 * LINK


@pytest.mark.parametrize("family", [4, 6])
def test_what_comes_in_is_shared_and_limited(net, host, family):
    with bandwidth(host, direction="in") as ceilings:
        ceilings.change(left=LINK, right=8 * MBIT)
        first, second = streams((net["left"], host), (net["right"], host), family=family)
        assert 0.6 * 8 * MBIT < second < 1.15 * 8 * MBIT
        assert 0.6 * LINK < first < 0.95 * LINK
        ceilings.change(right=LINK)
        first, second = streams((net["left"], host), (net["right"], host), family=family, seconds=4)
        assert 0.8 * LINK < first + second < 1.1 * LINK
