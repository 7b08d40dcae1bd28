"""What rewrites packets on a host, seen in real namespaces; packets meet the rules in netns/test_source_nat.py."""

from __future__ import annotations

from collections import Counter

import pytest
from topology import Host, Topology

from scentd.datapath.host import rewriting
from scentd.datapath.host.rewritten import Rewrites

pytestmark = pytest.mark.netns


@pytest.fixture
def host():
    with Topology("rw") as net:
        yield net.host("a")


def test_no_nat(host: Host):
    host.run("nft", "add table inet t; add chain inet t c { type filter hook postrouting priority 100; }")
    host.run("iptables-legacy", "-w", "-A", "OUTPUT", "-j", "ACCEPT")
    assert not host.call(rewriting.read).nat
    assert host.call(rewriting.counts) == Counter()


def test_ipsec(host: Host):
    assert not host.call(rewriting.read).ipsec
    policy = "ip xfrm policy add src 10.1.0.1 dst 10.1.0.2 dir {} tmpl proto esp mode transport"
    host.run(*policy.format("in").split())
    assert not host.call(rewriting.read).ipsec
    host.run(*policy.format("out").split())
    assert host.call(rewriting.read).ipsec
    assert host.call(rewriting.differs, Rewrites())
    assert not host.call(rewriting.differs, Rewrites(ipsec=True))


@pytest.mark.parametrize(
    "command",
    [
        ("nft", "add table inet t; add chain inet t c { type nat hook output priority -100; }"),
        ("iptables", "-w", "-t", "nat", "-A", "POSTROUTING", "-j", "MASQUERADE"),
        ("iptables-legacy", "-w", "-t", "nat", "-A", "POSTROUTING", "-j", "MASQUERADE"),
        ("ip6tables-legacy", "-w", "-t", "nat", "-A", "POSTROUTING", "-j", "MASQUERADE"),
    ],
)
def test_nat(host: Host, command: tuple[str, ...]):
    host.run(*command)
    assert host.call(rewriting.read).nat
