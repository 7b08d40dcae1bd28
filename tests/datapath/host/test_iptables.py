"""The text that iptables-restore gets, without a kernel."""

from __future__ import annotations

from queues import config

from scentd.config.sections import Verify
from scentd.datapath.host import iptables, rules


def test_jumps_of_others_are_not_ours():
    have = {"mangle": ["-P OUTPUT ACCEPT", "-N SCENTD-OUT", "-A OUTPUT -j OTHER", "-A OUTPUT -j SCENTD-OUT"]}
    assert iptables.removal_input(have) == "*mangle\n-D OUTPUT -j SCENTD-OUT\n-F SCENTD-OUT\n-X SCENTD-OUT\nCOMMIT\n"
    assert iptables.removal_input({"mangle": ["-A OUTPUT -j OTHER"], "filter": []}) == ""


def test_a_foreign_rule_above_the_refusal_is_a_difference():
    want = rules.build(config(verify=Verify(rejected="reject")), 4)
    filled = {"mangle": want["mangle"], "filter": ["-A INPUT -j ACCEPT", *want["filter"]]}
    assert iptables.is_applied(want, want)
    assert not iptables.is_applied(want, filled)


def test_nobody_told_no_rules_in_filter():
    for told in (Verify(rejected="reject"), Verify(absent="reject")):
        assert rules.build(config(verify=told), 4)["filter"]
    assert rules.build(config(), 4)["filter"] == []
    assert "*filter" not in iptables.restore_input(rules.build(config(), 4))
    assert "-X SCENTD-REJECT" in iptables.restore_input(rules.build(config(), 4), {"filter": ["-N SCENTD-REJECT"]})


def test_explanations_name_the_way_out():
    text = "*mangle\n-A OUTPUT -m u32 --u32 x -j RETURN\nCOMMIT\n"
    assert "xt_u32" in iptables.explain(
        "iptables-restore: Couldn't load match `u32':No such file\nError at line: 2", text
    )
    assert "(-A OUTPUT -m u32" in iptables.explain("Error occurred at line: 2\nTry `x'", text)
    assert "CAP_NET_ADMIN" in iptables.explain("Could not fetch rule set generation id: Permission denied", "")
