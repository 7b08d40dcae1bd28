"""What is ours on the host vanishes: a firewall is loaded anew, a set emptied. It comes back, and is told.

a ---- 10.1.0.0/24, fd00:1::/64 ---- b      each the other's strict peer
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from edges import reached, strict_ends
from hosts import Node, until

from scentd.datapath.host import selection
from scentd.datapath.host.iptables import TABLES

pytestmark = pytest.mark.netns

SOON = 5  # seconds: what is told of; the look now and then comes every 10


@pytest.fixture(scope="module", params=["queue", "offload"])
def nodes(request, tmp_path_factory) -> Iterator[tuple[Node, Node]]:
    with strict_ends("va", tmp_path_factory.mktemp("va"), request.param == "offload") as ends:
        yield ends


def iptables(node: Node, *argv: str) -> None:
    for program in ("iptables", "ip6tables"):
        node.host.run(program, "-w", *argv)


def flush_ruleset(node: Node) -> None:
    node.host.run("nft", "flush", "ruleset")


def flush_raw(node: Node) -> None:
    iptables(node, "-t", "raw", "-F")
    node.host.run("iptables", "-w", "-t", "raw", "-X", check=False)  # the daemon may have put its jump back already


def load_another(node: Node) -> None:
    """As a firewall does that is started anew."""
    for program in ("iptables", "ip6tables"):
        rules = "*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"
        node.host.run(f"{program}-restore", "-w", "10", input=rules)


def delete_jump(node: Node) -> None:
    line = next(x for x in node.host.out("iptables", "-t", "raw", "-S").splitlines() if x.startswith("-A PREROUTING"))
    node.host.run("iptables", "-w", "-t", "raw", "-D", *line.split()[1:])


def delete_table(node: Node) -> None:
    node.host.run("nft", "delete", "table", "inet", selection.NAME)


def delete_rule(node: Node) -> None:
    listed = node.host.out("nft", "-a", "list", "chain", "inet", selection.NAME, "ours").splitlines()
    handle = next(line for line in listed if "@verify6" in line).split()[-1]
    node.host.run("nft", "delete", "rule", "inet", selection.NAME, "ours", "handle", handle)


def empty_sets(node: Node) -> None:
    for kind in selection.SET_KINDS:
        node.host.run("nft", "flush", "set", "inet", selection.NAME, f"{kind}4")


def as_before(node: Node) -> tuple:
    """What of ours is there."""
    programs = ("iptables", "ip6tables")
    rules = [node.host.out(p, "-w", "-t", t, "-S") for p in programs for t in TABLES]
    return rules, node.host.run("nft", "list", "table", "inet", selection.NAME, check=False).stdout


@pytest.mark.parametrize("vanish", [flush_ruleset, flush_raw, load_another, delete_jump, delete_table, delete_rule])
@pytest.mark.parametrize("end", [0, 1], ids=["the sender's", "the receiver's"])
def test_what_is_removed_comes_back_at_once(nodes, vanish: Callable[[Node], None], end):
    node = nodes[end]
    before, restored = as_before(node), node.status()["rules_restored"]
    vanish(node)
    until(lambda: node.status()["rules_restored"] > restored, "it is seen", SOON)
    until(lambda: as_before(node) == before, "all is back", SOON)
    assert node.status()["rules_why_not"] == ""
    assert "; putting them back" in node.log.read_text()
    assert "put back on the host after others" in node.cli("status").stdout
    until(lambda: reached(*nodes) == [True, True], "scented packets pass")


def test_an_empty_set_is_filled_again(nodes):
    """Nobody is told of it: the look now and then sees it."""
    node = nodes[1]
    before, restored = as_before(node), node.status()["rules_restored"]
    empty_sets(node)
    until(lambda: node.status()["rules_restored"] > restored, "it is seen", 20)
    until(lambda: as_before(node) == before, "all is back")
    assert f"nftables: somebody has changed the table {selection.NAME}" in node.log.read_text()


def test_other_rules_are_nobody_s_business(nodes):
    """What others remove of their own is no reason to touch anything."""
    node = nodes[1]
    restored = node.status()["rules_restored"]
    for _ in range(3):
        iptables(node, "-A", "INPUT", "-p", "tcp", "--dport", "9", "-j", "ACCEPT")
        iptables(node, "-D", "INPUT", "-p", "tcp", "--dport", "9", "-j", "ACCEPT")
    node.host.run("nft", "add", "table", "inet", "theirs")
    node.host.run("nft", "delete", "table", "inet", "theirs")
    assert reached(*nodes) == [True, True]
    assert node.status()["rules_restored"] == restored


def test_a_fighter_gets_a_clear_word(nodes):
    """Ten times in a minute are enough; then it is put back now and then alone. This test is the last one."""
    node = nodes[1]
    before = as_before(node)

    def fought() -> bool:
        if "-A SCENTD" in node.host.out("iptables", "-w", "-t", "raw", "-S"):
            flush_raw(node)
        return "put back every 10 s alone until this ends" in node.log.read_text()

    until(fought, "it gives up", 60)
    until(lambda: "again and again" in node.status()["rules_why_not"], "status says so")
    until(lambda: as_before(node) == before, "it is put back all the same", 25)
