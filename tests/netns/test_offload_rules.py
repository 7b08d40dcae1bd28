"""The queue's rules beside the offload: what a program serves is not queued, what it has not decided is."""

from __future__ import annotations

import pytest
from test_rules import config
from topology import Topology

from scentd.config import Stamp, Verify
from scentd.datapath import rules, sets
from scentd.datapath.rules import Offloaded

pytestmark = pytest.mark.netns

SERVED = Offloaded(("eth0", "eth1"), ("gre6",))


@pytest.fixture
def host():
    with Topology("ofr") as net:
        yield net.host("a")


@pytest.mark.parametrize("forwarded", [False, True])
def test_the_kernel_prints_them_as_they_are_wanted(host, forwarded):
    wish = config(stamp=Stamp(forwarded=forwarded), verify=Verify(absent="drop"))
    host.call(sets.apply, wish)
    for offloaded in (SERVED, None, Offloaded()):
        assert host.call(rules.apply, wish, offloaded)
        for family in (4, 6):
            assert rules.same(rules.wanted(wish, family, offloaded), host.call(rules.installed, family))
        assert not host.call(rules.apply, wish, offloaded)
    assert host.call(rules.remove)


def test_without_the_offload_nothing_passes_by_the_queue():
    for family in (4, 6):
        lines = rules.wanted(config(), family)["mangle"]
        assert not any("0x40000000" in line or "eth0" in line for line in lines)


@pytest.mark.parametrize("family", [4, 6])
def test_each_stamping_interface_has_a_way_past_the_queue_and_no_other(family):
    lines = rules.outbound(config(), family, SERVED)
    past = [line for line in lines if " -o eth" in line]
    assert [line.split()[3] for line in past] == ["eth0", "eth1"]
    assert all(rules.PLAIN[family] in line and line.endswith("-j RETURN") for line in past)
    assert lines.index(past[0]) == 1, "before all other matches of the chain"
    assert "NFQUEUE" in lines[-1]


@pytest.mark.parametrize("family", [4, 6])
def test_a_mark_counts_only_where_the_program_gave_it(family):
    lines = rules.inbound(config(), family, SERVED)
    cleared = next(i for i, line in enumerate(lines) if "-i gre6" in line)
    returned = next(i for i, line in enumerate(lines) if "--mark 0x40000000/0x40000000" in line and "RETURN" in line)
    assert lines[cleared].endswith("-j MARK --set-xmark 0x0/0x40000000")
    assert cleared < returned < next(i for i, line in enumerate(lines) if "NFQUEUE" in line)
