from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from scentd.core.allocate.edges import choose, is_closer


class Edge(NamedTuple):
    name: str
    region: str = ""


NEAR, FAR, ASIA = Edge("near", "eu"), Edge("far", "eu"), Edge("asia", "asia")
TIMES = {"near": 0.01, "far": 0.1, "asia": 0.2}


def test_the_shortest_round_trip_decides():
    assert choose([FAR, ASIA, NEAR], [], TIMES) == NEAR


def test_the_region_that_hurts_comes_first():
    assert choose([FAR, ASIA, NEAR], ["asia"], TIMES) == ASIA
    assert choose([FAR, ASIA, NEAR], ["asia", "eu"], TIMES) == NEAR


def test_an_edge_that_does_not_answer_is_not_chosen():
    assert choose([NEAR, FAR], ["eu"], {"far": 0.1}) == FAR
    assert choose([NEAR, FAR], [], {}) is None


def test_without_an_edge_in_the_region_there_is_none():
    assert choose([NEAR, FAR], ["africa"], TIMES) is None
    assert choose([], [], TIMES) is None


def test_of_equals_the_first_by_name_counts():
    assert choose([NEAR, FAR], [], {"near": 0.1, "far": 0.1}) == FAR


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 10)),
    st.lists(st.sampled_from(["x", "y", "z"])),
    st.permutations([Edge("a", "x"), Edge("b", "x"), Edge("c", "y"), Edge("d", "y"), Edge("e"), Edge("f", "z")]),
)
def test_the_choice_is_the_best_and_the_order_does_not_matter(times, hurting, edges):
    chosen = choose(edges, hurting, times)
    suited = [edge for edge in edges if edge.name in times and (edge.region in hurting or not hurting)]
    assert chosen == choose(sorted(edges), hurting, times)
    assert (chosen is None) == (not suited)
    assert chosen is None or times[chosen.name] == min(times[edge.name] for edge in suited)


def test_closer_is_a_share():
    assert is_closer(1.0, 0.9, 0.1)
    assert not is_closer(1.0, 0.91, 0.1)
    assert is_closer(1.0, 1.0, 0.0)
