from ipaddress import ip_network

from hypothesis import given
from hypothesis import strategies as st
from wire_strategies import quick

from scentd.prefix import by_numeric, nesting, numeric, remove_covered

texts = st.one_of(
    st.builds(lambda n, bits: str(ip_network((n << 24, bits), strict=False)), st.integers(0, 255), st.integers(0, 9)),
    st.builds(lambda n, bits: str(ip_network((n << 120, bits), strict=False)), st.integers(0, 255), st.integers(0, 9)),
)


def within(inner, outer):
    return inner.version == outer.version and inner.subnet_of(outer)


@quick
@given(st.sets(texts, max_size=12))
def test_each_lies_in_the_longest_other_that_covers_it(chosen):
    by_place = {numeric(text): ip_network(text) for text in chosen}
    seen = set()
    for prefix, around in nesting(by_place):
        covering = [p for p, n in by_place.items() if p != prefix and within(by_place[prefix], n)]
        assert around == max(covering, key=lambda p: p[2], default=None)
        assert around is None or around in seen, "what covers comes first"
        seen.add(prefix)
    assert seen == by_place.keys()


@quick
@given(st.sets(texts, max_size=8), st.sets(texts, max_size=8))
def test_what_lies_outside(chosen, others):
    networks = list(map(ip_network, others))
    expected = [t for t in chosen if not any(within(ip_network(t), n) for n in networks)]
    assert remove_covered(map(numeric, chosen), set(map(numeric, others))) == sorted(map(numeric, expected))


def test_the_last_of_two_equal_prefixes_wins():
    assert by_numeric([("10.0.0.0/8", 1), ("::1", 2), ("10.0.0.0/8", 3)]) == {(4, 10 << 24, 8): 3, (6, 1, 128): 2}
