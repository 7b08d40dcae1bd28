"""The queue's rules beside the offload: what a program serves is not queued, what it has not decided is."""

from __future__ import annotations

import pytest
from queues import config
from topology import Topology

from scentd.config.sections import Stamp, Verify
from scentd.core.offload.coverage import Coverage
from scentd.datapath.host import iptables, rules, sets

pytestmark = pytest.mark.netns

SERVED = Coverage(("eth0", "eth1"), ("vrf0",))


@pytest.fixture
def host():
    with Topology("ofr") as net:
        yield net.host("a")


@pytest.mark.parametrize("forwarded", [False, True])
def test_the_kernel_prints_them_as_they_are_wanted(host, forwarded):
    wish = config(stamp=Stamp(forwarded=forwarded), verify=Verify(absent="drop"))
    host.call(sets.apply, wish)
    for served in (SERVED, None, Coverage(("eth0",)), SERVED._replace(rule_free=True), Coverage()):
        assert host.call(rules.apply, wish, served)
        for family in (4, 6):
            assert iptables.is_applied(rules.build(wish, family, served), host.call(iptables.read_tables, family))
        assert not host.call(rules.apply, wish, served)
    assert host.call(rules.remove)


def test_without_the_offload_nothing_passes_by_the_queue():
    for family in (4, 6):
        lines = rules.build(config(), family)["mangle"]
        assert not any("0x40000000" in line or "eth0" in line for line in lines)


@pytest.mark.parametrize("names", [(), ("eth0",), ("eth0", "eth1")])
def test_what_leaves_by_other_interfaces_leads_to_the_queue(names):
    lines = rules.outbound_rules(config(), 4, Coverage(names))
    jumps = [line.removeprefix("-A OUTPUT ") for line in lines if line.startswith("-A OUTPUT")]
    assert jumps == [["-j SCENTD-OUT"], ["! -o eth0 -j SCENTD-OUT"], ["-j SCENTD-OTHERS"]][len(names)]
    others = [line.removeprefix("-A SCENTD-OTHERS ") for line in lines if line.startswith("-A SCENTD-OTHERS")]
    assert others == ([*(f"-o {n} -j RETURN" for n in names), "-j SCENTD-OUT"] if len(names) == 2 else [])
    assert "NFQUEUE" in lines[-1]


@pytest.mark.parametrize("family", [4, 6])
def test_where_programs_stamp_alone_nothing_is_done_with_what_this_host_sends(family):
    rule_free = SERVED._replace(rule_free=True)
    assert rules.outbound_rules(config(), family, rule_free) == []
    forwarding = rules.outbound_rules(config(local=["10.9.0.0/16"], stamp=Stamp(forwarded=True)), family, rule_free)
    assert forwarding[0] == "-A FORWARD -j SCENTD-FORWARD"
    assert all(line.startswith("-A SCENTD-FORWARD") for line in forwarding[1:])
    assert not any("NFQUEUE" in line for line in forwarding)
    assert rules.inbound_rules(config(), family, rule_free) == rules.inbound_rules(config(), family, SERVED)
    nowhere = Coverage(rule_free=True)  # no route leads to a peer
    assert rules.outbound_rules(config(stamp=Stamp(forwarded=True)), family, nowhere) == []


@pytest.mark.parametrize("family", [4, 6])
def test_only_what_is_undecided_is_looked_at(family):
    lines = rules.inbound_rules(config(), family, SERVED)
    mark = "0x40000000/0x40000000"
    assert [x for x in lines if x.startswith("-A PREROUTING")] == [
        f"-A PREROUTING -m mark ! --mark {mark} -j SCENTD-IN"
    ]
    inside = [line for line in lines if line.startswith("-A SCENTD-IN")]
    assert inside[0] == "-A SCENTD-IN -i vrf0 -j RETURN"


@pytest.mark.parametrize("family", [4, 6])
def test_what_is_forwarded_and_ours_is_marked_for_the_program(family):
    lines = rules.outbound_rules(config(local=["10.9.0.0/16"], stamp=Stamp(forwarded=True)), family, SERVED)
    marked = [i for i, line in enumerate(lines) if line.endswith("-j MARK --set-xmark 0x40000000/0x40000000")]
    assert [lines[i].split()[:4] for i in marked] == [["-A", "SCENTD-FORWARD", "-o", n] for n in SERVED.stamping]
    foreign = next(i for i, line in enumerate(lines) if line.startswith("-A SCENTD-FORWARD -m set !"))
    assert foreign < marked[0]
    assert lines[marked[-1] + 1] == "-A SCENTD-FORWARD -m mark --mark 0x40000000/0x40000000 -j RETURN"
    assert not any("-j MARK" in line for line in rules.outbound_rules(config(), family, SERVED))
