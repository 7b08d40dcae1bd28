"""The text that iptables-restore gets, without a kernel."""

from __future__ import annotations

from queues import config

from scentd.datapath.host import iptables, rules


def test_jumps_of_others_are_not_ours():
    have = {"raw": ["-P OUTPUT ACCEPT", "-N SCENTD-OUT", "-A OUTPUT -j OTHER", "-A OUTPUT -j SCENTD-OUT"]}
    assert iptables.removal_input(have) == "*raw\n-D OUTPUT -j SCENTD-OUT\n-F SCENTD-OUT\n-X SCENTD-OUT\nCOMMIT\n"
    assert iptables.removal_input({"raw": ["-A OUTPUT -j OTHER"], "security": []}) == ""


def test_a_foreign_rule_beside_ours_is_no_difference_and_a_missing_one_of_ours_is():
    want = rules.build(config(), 4)
    assert iptables.is_applied(want, want)
    assert iptables.is_applied(want, {**want, "raw": ["-A PREROUTING -j ACCEPT", *want["raw"]]})
    assert not iptables.is_applied(want, {**want, "raw": want["raw"][:-1]})


def test_explanations_name_the_way_out():
    text = "*mangle\n-A OUTPUT -m u32 --u32 x -j RETURN\nCOMMIT\n"
    assert "xt_u32" in iptables.explain(
        "iptables-restore: Couldn't load match `u32':No such file\nError at line: 2", text
    )
    assert "(-A OUTPUT -m u32" in iptables.explain("Error occurred at line: 2\nTry `x'", text)
    assert "CAP_NET_ADMIN" in iptables.explain("Could not fetch rule set generation id: Permission denied", "")
