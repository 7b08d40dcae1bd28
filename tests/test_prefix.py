from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_strategies import quick

from scentd.prefix import PrefixMap, is_address, overlaps

networks = st.tuples(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 7, 8, 9, 24, 31, 32])).map(
    lambda n: str(ip_network(((n[0] >> 32 - n[1] << 32 - n[1]) & 0xFFFFFFFF, n[1])))
)


@quick
@given(st.dictionaries(networks, st.integers(), max_size=12), st.integers(0, 2**32 - 1))
def test_longest_prefix_wins(entries, number):
    address = ip_address(number)
    covering = [n for n in map(ip_network, entries) if address in n]
    best = max(covering, key=lambda n: n.prefixlen, default=None)
    assert PrefixMap(entries.items()).get(address.packed) == (None if best is None else entries[str(best)])


def test_families_do_not_mix():
    made = PrefixMap([("0.0.0.0/0", 4), ("::/0", 6)])
    assert (made.get(bytes(4)), made.get(bytes(16))) == (4, 6)
    assert PrefixMap([("::/0", 6)]).get(bytes(4)) is None


def test_zero_is_a_value_and_the_last_of_two_equal_prefixes_wins():
    assert PrefixMap([("10.0.0.0/8", 0)]).get(b"\x0a\1\1\1") == 0
    assert PrefixMap([("10.0.0.0/8", 1), ("10.0.0.0/8", 2)]).get(b"\x0a\1\1\1") == 2


@pytest.mark.parametrize("address", [b"", b"\x0a", bytes(5), bytes(17)])
def test_what_is_no_address_is_not_found(address):
    assert PrefixMap([("0.0.0.0/0", 4), ("::/0", 6)]).get(address) is None


def test_host_bits_are_refused():
    with pytest.raises(ValueError, match="host bits"):
        PrefixMap([("10.0.0.1/8", 1)])


def test_overlaps_are_told_with_both_owners():
    assert overlaps([(0, "10.0.0.0/8"), (1, "10.1.0.0/16")]) == [(1, "10.1.0.0/16", 0, "10.0.0.0/8")]
    assert overlaps([(0, "10.0.0.0/8"), (1, "11.0.0.0/8"), (2, "10.255.0.1")]) == [(2, "10.255.0.1", 0, "10.0.0.0/8")]
    assert overlaps([(0, "10.0.0.0/8"), (0, "10.1.0.0/16"), (1, "fd00::/8"), (2, "0.0.0.1")]) == []
    assert overlaps([(0, "not a prefix"), (1, "::1"), (2, "::1")]) == [(2, "::1", 1, "::1")]


def test_what_is_an_address():
    assert all(map(is_address, ("10.0.0.7", "fd00::7", "::")))
    assert not any(map(is_address, ("", "db", "10.0.0.0/24", "10.0.0", "10.0.0.7 ")))
