"""What the queues get beside the offload: what a program serves is not queued, what it has not decided is."""

from __future__ import annotations

import pytest
from queues import config
from topology import Topology

from scentd.config.sections import Config, Stamp, Verify
from scentd.core.offload.coverage import Coverage
from scentd.datapath.host import iptables, path_table, rules, selection

pytestmark = pytest.mark.netns

SERVED = Coverage(("eth0", "eth1"))
VERIFIED = "meta mark & 0x40000000 == 0x40000000"
STAMPED_THERE = 'oifname { "eth0", "eth1" }'
TO_ENCRYPT = "rt ipsec exists goto to_encrypt"
FIRST = ["meta oifkind vrf accept", TO_ENCRYPT]  # of what this host sends


@pytest.fixture
def host():
    with Topology("ofr") as net:
        yield net.host("a")


def chain(name: str, wish: Config, served: Coverage | None) -> list[str]:
    return [rule.text for rule in selection.select(wish, served).rules if rule.chain == name]


@pytest.mark.parametrize("forwarded", [False, True])
@pytest.mark.parametrize("local", [None, ["10.9.0.0/16", "fd09::/32"]])
def test_the_kernel_has_them_as_they_are_wanted(host, forwarded, local):
    wish = config(local=local, stamp=Stamp(forwarded=forwarded), verify=Verify(absent="drop"))
    for served in (SERVED, None, Coverage(("eth0",)), SERVED._replace(rule_free=True), Coverage()):
        want = selection.select(wish, served)
        host.call(rules.apply, wish, served)
        assert host.call(path_table.apply, want)
        assert host.call(path_table.is_applied, want)
        assert not host.call(path_table.apply, want)
        for family in (4, 6):
            assert iptables.is_applied(rules.build(wish, family, served), host.call(iptables.read_tables, family))
        assert not host.call(rules.apply, wish, served)
    assert host.call(rules.remove)
    assert host.call(path_table.remove)
    assert not host.call(path_table.remove)


def test_without_the_offload_nothing_passes_by_the_queue():
    rules_of_all = [rule.text for rule in selection.select(config()).rules]
    assert not any("0x40000000" in text or "oifname" in text for text in rules_of_all)


def test_what_leaves_by_other_interfaces_leads_to_the_queue():
    assert chain("out", config(), SERVED) == [*FIRST, f"{STAMPED_THERE} accept", "goto leaving"]
    assert chain("out", config(), Coverage()) == chain("out", config(), None) == [*FIRST, "goto leaving"]


def test_where_programs_stamp_alone_nothing_is_done_with_what_this_host_sends():
    rule_free = SERVED._replace(rule_free=True)
    assert rules.outbound_rules(config(), rule_free) == []
    wish = config(local=["10.9.0.0/16"], stamp=Stamp(forwarded=True))
    used = {rule.chain for rule in selection.select(wish, rule_free).rules}
    assert used == {"in", "decrypted", "ours", "across", "forwarded"}
    assert chain("forwarded", wish, rule_free) == [f"{STAMPED_THERE} meta mark set meta mark | 0x10000000 accept"]
    assert chain("in", wish, rule_free) == chain("in", wish, SERVED)
    nowhere = Coverage(rule_free=True)  # no route leads to a peer
    assert {rule.chain for rule in selection.select(wish, nowhere).rules} == {"in", "decrypted", "ours"}


def test_only_what_is_undecided_is_looked_at():
    assert chain("in", config(), SERVED)[0] == f"{VERIFIED} meta mark set meta mark & 0xbfffffff accept"
    strict = config(verify=Verify(absent="drop"))  # the guard reads the mark, and it is cleared behind
    assert chain("in", strict, SERVED)[0] == f"{VERIFIED} accept"
    assert chain("judged", strict, SERVED)[0] == f"{VERIFIED} meta mark set meta mark & 0xbfffffff"


def test_what_is_forwarded_and_ours_is_marked_for_the_program():
    wish = config(local=["10.9.0.0/16"], stamp=Stamp(forwarded=True))
    assert chain("across", wish, SERVED) == ["ip saddr @local4 goto forwarded", "ip6 saddr @local6 goto forwarded"]
    encrypted, marked, others = chain("forwarded", wish, SERVED)
    assert encrypted == TO_ENCRYPT, "no program sees it in a tunnel"
    assert marked == f"{STAMPED_THERE} meta mark set meta mark | 0x10000000 accept"
    assert others == "goto leaving"
    assert chain("across", config(), SERVED) == []


def test_an_interface_whose_name_would_need_escapes_is_left_to_the_queue():
    plain = Coverage(('e"0', "e*", "eth0"))
    assert chain("out", config(), plain) == [*FIRST, 'oifname { "eth0" } accept', "goto leaving"]
