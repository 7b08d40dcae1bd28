"""What the log says of nodes: once, by name, and not a line for each of a thousand."""

import logging

from scentd.model import NodeState
from scentd.roles.node_log import PAUSE, NodeLog


def node(name, state, reason=""):
    return NodeState(name, (), state, reason, 1.0, True)


def test_a_node_that_falls_silent_is_told_once_and_again_when_it_is_back(caplog):
    caplog.set_level(logging.INFO)
    told = NodeLog("acme")
    told.look([node("a", "fresh"), node("b", "fresh")], 0.0)
    for now in (1.0, 2.0):
        told.look([node("a", "fresh"), node("b", "stale", "silent for 16 s")], now)
    told.look([node("a", "fresh"), node("b", "fresh")], 3.0)
    assert caplog.messages == [
        "network acme: stale node b: silent for 16 s (not repeated soon)",
        "network acme: fresh again: node b",
    ]
    assert dict(told.counters) == {"became_stale": 1, "became_suspect": 0}


def test_a_node_that_goes_to_and_fro_is_counted_and_not_told_each_time(caplog):
    told = NodeLog("acme")
    for now in range(20):
        told.look([node("", "suspect" if now % 2 else "fresh", "cpu: not a number")], float(now))
    assert [line for line in caplog.messages if "suspect" in line] == [
        "network acme: suspect node this host: cpu: not a number (not repeated soon)"
    ]
    assert told.counters["became_suspect"] == 10
    told.look([node("", "fresh")], 30.0)
    told.look([node("", "suspect")], PAUSE + 2)
    assert sum("suspect" in line for line in caplog.messages) == 2


def test_a_thousand_nodes_are_one_line(caplog):
    told = NodeLog("acme")
    told.look([node(f"n{i}", "stale", "silent") for i in range(1000)], 0.0)
    (line,) = caplog.messages
    assert "n0: silent" in line
    assert "and 995 more" in line
    assert told.counters["became_stale"] == 1000
