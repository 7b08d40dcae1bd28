"""Address sets as the kernel holds them."""

from __future__ import annotations

import struct
import time
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from queues import config, install

from scentd.datapath.host import rules, sets
from scentd.errors import HostError

pytestmark = pytest.mark.netns


def networks(kind: type, bits: int):
    return st.builds(
        lambda number, length: kind((number >> (bits - length) << (bits - length), length)),
        st.integers(0, 2**bits - 1),
        st.integers(0, bits),
    )


@given(networks(IPv4Network, 32) | networks(IPv6Network, 128))
def test_set_entries_are_well_formed(prefix):
    for part in sets.halves(prefix):
        entry = sets.entry(part)
        length, kind = struct.unpack_from("=HH", entry)
        assert (length, kind & 0x7FFF) == (len(entry), sets.ATTR_DATA)
        assert 0 < part.prefixlen == entry[-4]
        assert part.network_address.packed in entry
    assert list(collapse_addresses(sets.halves(prefix))) == [prefix]


@pytest.mark.netns
def test_sets_become_what_the_configuration_says(sender):
    wish = config(["10.0.0.0/8", "192.0.2.1", "::/0", "fd00::/16"], local=["0.0.0.0/0", "2001:db8::/32"])
    for _ in range(2):
        sender.call(sets.apply, wish)
        assert sender.call(sets.read) == sets.contents(wish)
    assert sets.contents(wish)["scentd-stamp6"] == {ip_network("::/1"), ip_network("8000::/1"), ip_network("fd00::/16")}
    other = config(["198.51.100.0/24"])
    sender.call(sets.apply, other)
    assert sender.call(sets.read) == sets.contents(other)
    for _ in range(2):
        sender.call(sets.remove)
        assert sender.call(sets.read) == {}


@pytest.mark.netns
def test_sets_hold_more_than_the_default_and_more_than_one_message(sender):
    many = config([f"10.{i >> 8 & 255}.{i & 255}.{i >> 16 << 4}/28" for i in range(70_000)])
    started = time.monotonic()
    sender.call(sets.apply, many)
    assert time.monotonic() - started < 10
    with sender.call(sets.IPSet) as ipset:
        header = sender.call(lambda: next(iter(ipset.list("scentd-stamp4"))).get_attr("IPSET_ATTR_DATA"))
    assert header.get_attr("IPSET_ATTR_ELEMENTS") == 70_000


@pytest.mark.netns
def test_what_a_crash_left_is_no_hindrance(sender):
    def crash() -> None:
        with sets.ipset_socket() as ipset:
            sets.create(ipset, sets.temporary("stamp", 4), 4, 0)
            sets.fill(ipset, sets.temporary("stamp", 4), frozenset([ip_network("10.66.0.0/16")]))

    sender.call(crash)
    sender.call(sets.apply, config())
    assert sender.call(sets.read) == sets.contents(config())


@pytest.mark.netns
def test_a_refused_entry_is_an_error(sender):
    def fill_wrong_family() -> None:
        with sets.ipset_socket() as ipset:
            sets.create(ipset, "scentd-tmp-stamp4", 4, 1)
            sets.fill(ipset, "scentd-tmp-stamp4", frozenset([ip_network("fd00::/16")]))

    with pytest.raises(HostError, match="ipset"):
        sender.call(fill_wrong_family)


@pytest.mark.netns
def test_a_reload_changes_sets_under_living_rules(sender):
    install(sender, config(["10.1.0.2"]))
    before = sender.out("iptables", "-t", "mangle", "-vS")
    with pytest.raises(HostError, match="remove the rules first"):
        sender.call(sets.remove)
    new = config(["10.1.0.2", "10.9.0.0/16"])
    sender.call(sets.apply, new)
    assert not sender.call(rules.apply, new)
    assert sender.call(sets.read) == sets.contents(new)
    assert sender.out("iptables", "-t", "mangle", "-vS") == before
