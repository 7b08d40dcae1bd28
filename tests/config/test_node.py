"""What a network says of its nodes: every mistake, under its path, with the way out."""

import pytest

from scentd.errors import ConfigError
from scentd.kinds import config_from

MEMORY = {"kind": "memory"}


def network(**changes):
    made = {"name": "a", "key_file": "/k", **changes}
    return config_from({"network": [made]}).network[0]


def problems(**changes) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        network(**changes)
    return raised.value.problems


def test_without_any_of_it_there_are_defaults():
    made = network(interval="4s")
    assert (made.staleness, made.aggregate, made.outlier_factor, made.node) == (12.0, {}, 10.0, [])
    assert network(stale_after="1m").staleness == 60.0


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"aggregate": {"cpu": "median"}}, 'network[0].aggregate: Invalid enum value'),
        ({"aggregate": {"cup": "max"}}, "network[0].aggregate.cup: no such metric; did you mean cpu?"),
        ({"aggregate": {"threat": "mean"}}, "network[0].aggregate.threat: leave it out"),
        ({"stale_after": "2s"}, "network[0].stale_after: is less than network[0].interval"),
        ({"outlier_factor": 1.5}, "network[0].outlier_factor: write 2 or more, or 0"),
        ({"outlier_factor": float("inf")}, "network[0].outlier_factor: write 2 or more, or 0"),
        ({"node": [{"name": ""}]}, "network[0].node[0].name: "),
        ({"node": [{}]}, "network[0].node[0].name: missing"),
        ({"node": [{"name": "a b"}]}, "network[0].node[0].name: "),
        ({"node": [{"name": "x", "addresses": ["10.0.0.0/24"]}]}, "network[0].node[0].addresses[0]: '10.0.0.0/24'"),
        ({"node": [{"name": "x", "addresses": ["10.0.0"]}]}, "network[0].node[0].addresses[0]: "),
        ({"node": [{"name": "x"}, {"name": "x"}]}, "network[0].node[1]: x is network[0].node[0], too; name each once"),
        (
            {"node": [{"name": "x", "addresses": ["10.0.0.1"]}, {"name": "10.0.0.1"}]},
            "network[0].node[1]: 10.0.0.1 is network[0].node[0], too",
        ),
        ({"node": [{"name": "x", "role": "X"}]}, "network[0].node[0].role: 'X' is a node, and a role"),
        ({"node": [{"name": "x", "role": "10.0.0.9"}]}, "network[0].node[0].role: '10.0.0.9' is a node"),
        ({"node": [{"name": "x", "role": "a;b"}]}, "network[0].node[0].role: "),
        ({"source": [{**MEMORY, "role": "fd00::1"}]}, "network[0].source[0].role: 'fd00::1' is a node"),
        ({"source": [{**MEMORY, "node": "n1"}, {**MEMORY, "role": "n1"}]}, "network[0].source[1].role: 'n1' is a node"),
        ({"source": [{**MEMORY, "node": "a;b"}]}, "network[0].source[0].node: "),
    ],
)  # fmt: skip
def test_mistakes(changes, text):
    found = problems(**changes)
    assert len(found) == 1, found
    assert found[0].startswith(text)
