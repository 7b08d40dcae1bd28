"""The table of what goes to the queues, as the kernel holds it."""

from __future__ import annotations

import itertools
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from queues import config

from scentd.datapath.host import path_table, selection
from scentd.system import nft

pytestmark = pytest.mark.netns

PREFIXES = st.lists(
    st.builds(
        lambda number, length: f"{ip_address(number >> (32 - length) << (32 - length))}/{length}",
        st.integers(0, 2**32 - 1),
        st.integers(0, 32),
    ),
    min_size=1,
    max_size=12,
    unique=True,
)


@given(PREFIXES, st.integers(0, 2**32 - 1))
def test_a_set_has_the_addresses_of_its_prefixes_and_no_others(prefixes, number):
    ranges = selection.sets(config(prefixes))["verify4"]
    assert any(first <= number <= last for _, first, last in ranges) == any(
        ip_address(number) in ip_network(p) for p in prefixes
    )
    assert all(a[2] + 1 < b[1] for a, b in itertools.pairwise(ranges))


def test_sets_become_what_the_configuration_says(sender):
    first = config(
        ["10.0.0.0/8", "10.1.0.0/16", "192.0.2.1", "::/0", "fd00::/16"], local=["0.0.0.0/0", "2001:db8::/32"]
    )
    for wish in (first, config(["10.0.0.0/7"]), config(["198.51.100.0/24"]), config(["198.51.100.0/25"]), first):
        want = selection.select(wish)
        assert sender.call(path_table.apply, want)
        assert sender.call(path_table.is_applied, want)
        assert not sender.call(path_table.apply, want)
    assert "0.0.0.0/0" in sender.call(path_table.show)


def test_sets_hold_many_prefixes(sender):
    many = selection.select(config([f"10.{i >> 8 & 255}.{i & 255}.{i >> 16 << 5}/28" for i in range(70_000)]))
    assert len(many.sets["verify4"]) == 70_000
    assert sender.call(path_table.apply, many)
    assert sender.call(path_table.is_applied, many)
    few = selection.select(config(["10.0.0.0/8"]))
    assert sender.call(path_table.apply, few)
    assert sender.call(path_table.is_applied, few)


def test_what_somebody_has_changed_is_seen_and_mended(sender):
    want = selection.select(config())
    sender.call(path_table.apply, want)
    name = selection.NAME
    for change in (
        ("flush", "chain", "inet", name, "ours"),
        ("add", "element", "inet", name, "verify4", "{ 192.0.2.7 }"),
        ("insert", "rule", "inet", name, "in", "accept"),
        ("flush", "set", "inet", name, "verify6"),
        ("delete", "table", "inet", name),
    ):
        before = sender.call(nft.generation)
        sender.run("nft", *change)
        assert sender.call(nft.generation) > before
        assert not sender.call(path_table.is_applied, want), change
        sender.call(path_table.apply, want)
        assert sender.call(path_table.is_applied, want)
        assert sender.call(nft.generation) == sender.call(nft.generation)
