"""Many nodes to one value: what each method says, and what one node can do that lies."""

import itertools
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scentd.config.sections import Network
from scentd.core.profile import aggregate
from scentd.core.profile.aggregate import QUORUM
from scentd.model import Sample
from scentd.wire import layout

NOW = 1_000_000.0
METHODS = ("mean", "max", "p95")


def network(**changes):
    return Network(**{"name": "a", "key_file": "k", **changes})


def by(method, **changes):
    return network(aggregate={"cpu": method}, **changes)


def sample(value, node="", **changes):
    return Sample(**{"metric": "cpu", "value": value, "at": NOW, "node": node, **changes})


def nodes(*values, **changes):
    return [sample(value, f"n{i}", **changes) for i, value in enumerate(values)]


def level(network, samples, metric="cpu"):
    return aggregate.levels(network, samples, NOW).metrics.get(metric)


def test_each_method():
    values = [i / 40 for i in range(40)]
    of = {method: level(by(method, outlier_factor=0.0), nodes(*values)) for method in METHODS}
    assert of == {"mean": pytest.approx(19.5 / 40), "max": 39 / 40, "p95": 37 / 40}
    assert level(by("p95"), nodes(0.1, 0.2, 0.9)) == 0.9  # of fewer than 20 the largest
    assert level(by("p95", outlier_factor=0.0), nodes(*[0.1] * 19, 0.9)) == 0.1


def test_every_metric_has_a_method_of_its_own_and_what_is_private_the_mean():
    assert {*aggregate.DEFAULTS, "threat"} == {*layout.METRICS.values()}
    assert aggregate.method_of(network(), "queue") == "mean"
    assert aggregate.method_of(network(aggregate={"cpu": "max"}), "cpu") == "max"


def test_a_node_of_several_roles_has_one_share():
    two_roles = [sample(1.0, "n0", role=role) for role in ("web", "cache", "db")]
    assert level(by("mean"), [*two_roles, sample(0.0, "n1")]) == 0.5
    assert level(by("max"), [sample(0.2, "n0", role="a"), sample(0.6, "n0", role="b"), sample(0.3, "n1")]) == 0.6


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_number_is_left_out(method, wrong):
    assert level(by(method), nodes(0.2, 0.2, wrong)) == pytest.approx(0.2)
    assert level(by(method), nodes(wrong)) is None


def test_what_is_out_of_range_is_clipped_in_a_mean_and_left_out_of_ranks():
    assert level(by("mean"), nodes(0.2, 0.2, 37.0)) == pytest.approx(1.4 / 3)
    assert level(by("max"), nodes(0.2, 0.3, 37.0)) == level(by("p95"), nodes(0.2, 0.3, 37.0)) == 0.3
    assert level(by("max"), nodes(0.2, -5.0)) == 0.2
    assert level(by("max"), nodes(37.0)) == 1.0  # there is nothing else
    assert level(by("max"), nodes(0.2, 1.005)) == 1.0  # a slip of two readings, and no lie


@pytest.mark.parametrize("offset", [3600.0, -3600.0, math.inf, math.nan, 15.0, -15.0])
def test_what_has_a_wrong_time_is_left_out(offset):
    assert level(by("max"), [*nodes(0.2), sample(0.9, "wrong", at=NOW + offset)]) == 0.2


def test_ten_times_everybody_else_counts_as_that():
    quiet = [0.02] * (QUORUM - 1)
    assert level(by("max"), nodes(*quiet, 1.0)) == 0.5  # 10 x 0.05, as nobody is taken to do less
    assert level(by("max"), nodes(*[0.08] * (QUORUM - 1), 1.0)) == 0.8
    assert level(by("mean"), nodes(*[0.0] * (QUORUM - 1), 1.0)) == pytest.approx(0.5 / QUORUM)
    assert level(by("max", outlier_factor=0.0), nodes(*quiet, 1.0)) == 1.0
    assert level(by("max", outlier_factor=4.0), nodes(*quiet, 1.0)) == 0.2
    assert level(by("max"), nodes(*quiet[:-1], 1.0)) == 1.0, "of fewer than QUORUM nobody can tell who lies"


def test_nodes_are_compared_with_their_like():
    """One database beside twenty idle web servers is no liar."""
    webs = [sample(0.01, f"w{i}", role="web") for i in range(20)]
    assert level(by("max"), [*webs, sample(0.9, "d", role="db")]) == 0.9
    assert level(by("max"), [*webs, sample(0.9, "d", role="web")]) == 0.5


def test_under_ranks_a_role_is_as_high_as_min_nodes_of_it_are():
    values = nodes(0.1, 0.5, 0.9, 0.95, role="db")
    for k, value in ((1, 0.95), (2, 0.9), (3, 0.5)):
        assert aggregate.levels(by("max", min_nodes=k), values, NOW).roles == {("db", "cpu"): value}
        assert level(by("max", min_nodes=k), values) == 0.95
    assert aggregate.levels(by("max", min_nodes=5), values, NOW).roles == {}
    assert aggregate.levels(by("max", min_nodes=4), [*values[:3], *nodes(*[0.1] * 3, 9.0)], NOW).roles == {}


# -- properties -----------------------------------------------------------

shares = st.floats(0.0, 1.0)
numbers = st.one_of(st.floats(), st.integers(-(10**400), 10**400), st.sampled_from([NOW, 1.0, 0.0, -0.0, 5e-324]))
names = st.sampled_from(["", "a", "b", "db", "10.0.0.1", "\udcff", "x;y"])
anything = st.builds(
    Sample,
    st.sampled_from(["cpu", "threat", "latency", "?"]),
    numbers,
    numbers,
    names,
    names,
    st.sampled_from(["", "eu"]),
)
shapes = st.builds(
    lambda method, factor, k: by(method, outlier_factor=factor, min_nodes=k),
    st.sampled_from(METHODS),
    st.sampled_from([0.0, 2.0, 10.0]),
    st.integers(1, 4),
)


@given(shapes, st.lists(anything, max_size=40), st.randoms(use_true_random=False))
def test_no_input_raises_and_its_order_changes_nothing(shape, samples, random):
    made = aggregate.levels(shape, samples, NOW)
    values = [*made.metrics.values(), *made.roles.values(), *made.regions.values()]
    assert all(0.0 <= value <= 1.0 for value in values)
    assert "?" not in made.metrics
    again = list(samples)
    random.shuffle(again)
    assert aggregate.levels(shape, again, NOW) == made


@given(st.lists(shares, min_size=1, max_size=60), numbers, st.sampled_from([0.0, NOW, NOW + 1e6, math.nan]))
def test_one_liar_moves_a_mean_by_its_share(honest, value, at):
    shape = by("mean", outlier_factor=0.0)
    without = level(shape, nodes(*honest))
    with_it = level(shape, [*nodes(*honest), sample(value, "liar", at=at)])
    assert abs(with_it - without) <= 1 / (len(honest) + 1) + 1e-12


@given(st.sampled_from(["max", "p95"]), st.lists(shares, min_size=QUORUM, max_size=60), numbers)
def test_one_liar_moves_ranks_no_further_than_the_others_allow(method, honest, value):
    """Up to ten times the honest median, or the honest ones' own value; down by one rank, in value and in the limit."""
    ordered, n = sorted(honest), len(honest)

    def limit(median):
        return min(1.0, 10 * max(median, 0.05))

    made = level(by(method), [*nodes(*honest), sample(value, "liar")])
    middle = (n + 1) // 2
    most, least = limit(ordered[min(middle, n - 1)]), limit(ordered[middle - 1])
    top = n if method == "max" else -(-19 * (n + 1) // 20)
    assert made <= most
    assert made >= min(ordered[min(top, n) - 1 if method == "max" else max(top - 2, 0)], least)


@given(st.lists(shares, min_size=QUORUM, max_size=40), st.lists(numbers, max_size=6))
def test_readings_out_of_range_do_not_move_ranks_at_all(honest, lies):
    wrong = [value for value in lies if not -0.01 <= value <= 1.01]
    shape = by("max", outlier_factor=0.0)
    liars = [sample(value, f"liar{i}") for i, value in enumerate(wrong)]
    assert level(shape, [*nodes(*honest), *liars]) == max(honest)


def test_the_last_bit_of_a_mean_does_not_depend_on_the_order():
    """A sum does, and a bit decides a step."""
    orders = itertools.permutations(nodes(0.1, 0.2, 0.3, 0.7))
    assert len({level(by("mean"), order) for order in orders}) == 1


def test_the_operations_text_has_every_default_and_its_reason():
    text = (Path(aggregate.__file__).parents[3] / "systemd" / "README.md").read_text()
    rows = re.findall(r"^\| (\w+) \| (mean|max|p95) \| (?!\|)", text, re.MULTILINE)
    assert dict(row[:2] for row in rows) == aggregate.DEFAULTS
