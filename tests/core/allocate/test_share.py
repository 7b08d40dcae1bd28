"""Max-min fairness: nobody gets more than it asks, nobody with less could get more without taking from a poorer one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scentd.core.allocate.share import Demand, share

NUMBERS = st.integers(0, 20)


def demands_of(pairs):
    return {i: Demand(low, max(low, asked), has) for i, (low, asked, has) in enumerate(pairs)}


@pytest.mark.parametrize(
    ("asked", "total", "given_"),
    [
        ([2, 3], 10, [2, 3]),
        ([10, 10], 10, [5, 5]),
        ([1, 10, 10], 11, [1, 5, 5]),
        ([10, 10, 10], 11, [4, 4, 3]),
        ([1] * 1000, 300, [1] * 300 + [0] * 700),
    ],
)
def test_examples(asked, total, given_):
    assert list(share(demands_of([(0, a, 0) for a in asked]), total, True).values()) == given_


def test_a_minimum_comes_first_and_who_has_the_last_unit_keeps_it():
    assert share(demands_of([(6, 6, 6), (0, 9, 0), (0, 9, 2)]), 9, True) == {0: 6, 1: 1, 2: 2}


@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=8), st.integers(0, 60), st.booleans())
def test_share_is_fair(pairs, total, whole):
    demands = demands_of(pairs)
    got = share(demands, total, whole)
    assert set(got) == set(demands)
    assert all(d.minimum <= got[k] <= d.asked for k, d in demands.items())
    assert sum(got.values()) <= max(total, sum(d.minimum for d in demands.values())) + 1e-6
    unit = 1 if whole else 1e-6
    for key, demand in demands.items():
        if got[key] + unit <= demand.asked:  # it would take more: nobody else may have more than it, but by a minimum
            assert all(got[k] <= max(d.minimum, got[key] + unit) + 1e-6 for k, d in demands.items())
    if sum(d.asked for d in demands.values()) >= total >= sum(d.minimum for d in demands.values()):
        assert sum(got.values()) >= total - 1e-6, "nothing is left over"
