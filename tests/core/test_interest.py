"""What of a host's changes concerns peers, told apart without a look at the host."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from scentd.core.interest import Interest, overlaps, spans

PEERS = ("10.1.0.0/24", "10.1.1.0/24", "10.1.0.7", "192.0.2.1", "2001:db8::/32", "fd00::1")


@pytest.mark.parametrize(
    ("prefix", "wanted"),
    [
        ("0.0.0.0/0", True),
        ("10.1.0.0/16", True),
        ("10.1.1.128/25", True),
        ("10.1.2.0/24", False),
        ("10.0.255.0/24", False),
        ("192.0.2.1/32", True),
        ("192.0.2.0/32", False),
        ("192.0.2.2/32", False),
        ("::/0", True),
        ("fe80::/64", False),
        ("2001:db8:7::/48", True),
        ("fd00::/64", True),
        ("fd00::2/128", False),
        ("ff00::/8", False),
    ],
)
def test_prefixes(prefix, wanted):
    network = ip_network(prefix)
    found = overlaps(spans(map(ip_network, PEERS)), network.version, int(network[0]), network.prefixlen)
    assert found is wanted
    assert any(network.overlaps(p) for p in map(ip_network, PEERS) if p.version == network.version) is wanted


def test_nobody_is_a_peer():
    assert not overlaps(spans([]), 4, 0, 0)


@pytest.mark.parametrize(
    ("address", "interface", "comes", "goes"),
    [
        ("172.17.0.5", 9, False, False),
        ("fe80::1", 9, False, False),
        ("10.1.0.7", 9, True, True),  # a peer's: now it is this host's own
        ("172.17.0.5", 2, False, True),  # of an interface to peers: routes may go with it
        ("198.51.100.1", 9, False, True),  # a route to peers has it as its source
    ],
)
def test_addresses(address, interface, comes, goes):
    interest = Interest(spans(map(ip_network, PEERS)), {2}, {ip_address("198.51.100.1")}, forwards=False)
    assert interest.has_address(ip_address(address), interface, is_new=True) is comes
    assert interest.has_address(ip_address(address), interface, is_new=False) is goes
