"""Samples of many nodes to one value for each metric, for each metric of a role, and of the path to a region.

    x[i]      the newest sample of node i, within 0.0 .. 1.0 (a node with several roles: folded by the same method)
    mean      sum(x[i]) / n                                     a node moves it by 1/n at most
    p95       the ceil(0.95 n)-th smallest x[i]                 of fewer than 20 nodes that is the largest
    max       the n-th smallest x[i]                            one node decides, by design
    threat    the largest x[i], clipped: one attacked node is an attacked network, and no average hides it

What a node can do that lies:

    age beyond network.staleness, or dated so far ahead     its sample is left out
    not a number, infinite                                  its sample is left out
    outside 0.0 .. 1.0                                      is clipped for a mean (and for threat), and left out of p95
                                                            and max, unless there is nothing else
    above L = outlier_factor * max(median, 0.05)            counts as L

The median is that of the metric and role, of 5 nodes or more: of fewer nobody can tell who lies. So among honest nodes
one liar moves a mean by 1/n, raises p95 and max to L at most, where the others make L, and lowers them by one rank.
Without outlier_factor (0), or among fewer than 5, a node in range may raise a max to 1.0.

A role has a value only if `min_nodes` nodes have it. Under p95 and max that is a value that at least `min_nodes` nodes
reach, so that "high" is said of no fewer.

Rules of this file: pure, never raises for any sample, and the order of samples changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from scentd.config.node import Aggregation
from scentd.config.sections import Network
from scentd.model import Sample
from scentd.wire import layout

STANDARD_METRICS = frozenset(layout.METRICS.values())
THREAT = "threat"
SLACK = 0.01  # so far outside 0.0 .. 1.0 a value is clipped and not suspect: two readings are never quite of one moment
QUORUM = 5  # nodes of one metric and role; among fewer a node is not suspect because of the others
LEAST_MEDIAN = 0.05  # others who do nothing make nobody suspect who does little

# By metric: what becomes of many nodes' values, and why.
DEFAULTS: dict[str, Aggregation] = {
    "cpu": "mean",  # work can go to another node: what is left is the sum of what each has left
    "memory": "p95",  # it cannot: a node that runs out of it fails, whatever the others have
    "bandwidth_in": "max",  # a full link loses packets, and the room of others does not help
    "bandwidth_out": "max",
    "latency": "p95",  # a mean hides the slow ones, and the largest is often one bad path
    "jitter": "p95",
    "retransmits": "p95",
    "database_load": "max",  # the primary is the bottleneck, however idle its replicas are
    "request_load": "mean",  # balanced over the nodes
}
OTHERWISE: Aggregation = "mean"  # private metrics

Mark = tuple[float, float, bool]  # when it was read; the value within 0.0 .. 1.0; whether it was in range
Key = tuple[str, str, str]  # metric, role, region
Marks = dict[Key, dict[str, Mark]]  # by node


class Levels(NamedTuple):
    """Values within 0.0 .. 1.0."""

    metrics: dict[str, float]
    roles: dict[tuple[str, str], float]  # by (role, metric)
    regions: dict[tuple[str, str], float]  # by (region, metric)
    nodes: set[str]  # whoever has a say in any


def method_of(network: Network, metric: str) -> Aggregation:
    if metric == THREAT:
        return "max"
    return network.aggregate.get(metric) or DEFAULTS.get(metric, OTHERWISE)


def is_fresh(at: float, span: float, now: float) -> bool:
    """Whether what is dated `at` still counts. A clock that runs ahead makes nothing count for longer."""
    return now - span < at < now + span


def clamp(value: float) -> float | None:
    """`value` within 0.0 .. 1.0, None for NaN and the infinities."""
    if 0.0 <= value <= 1.0:
        return value
    if value - value != 0.0:  # NaN and infinities, the only numbers not equal to themselves less themselves
        return None
    return 0.0 if value < 0.0 else 1.0


def levels(network: Network, samples: Iterable[Sample], now: float) -> Levels:
    """The values of `network` at `now` (Unix seconds). Samples of metrics that it does not have are left out."""
    return combined(network, limited(network, newest(network, samples, now)))


def newest(network: Network, samples: Iterable[Sample], now: float) -> Marks:
    """The mark of each newest sample that counts; of equally new ones the highest."""
    earliest, latest = now - network.staleness, now + network.staleness
    marks: Marks = {}
    for sample in samples:
        value, sound = sample.value, True
        if not earliest < sample.at < latest:
            continue
        if not 0.0 <= value <= 1.0:
            sound = -SLACK <= value <= 1.0 + SLACK or sample.metric == THREAT
            clamped = clamp(value)
            if clamped is None:
                continue
            value = clamped
        mark = sample.at, value, sound
        key = sample.metric, sample.role, sample.region
        nodes = marks.get(key)
        if nodes is None:
            if sample.metric in STANDARD_METRICS or sample.metric in network.metrics:
                marks[key] = {sample.node: mark}
        elif sample.node not in nodes or mark > nodes[sample.node]:
            nodes[sample.node] = mark
    return marks


def limited(network: Network, marks: Marks) -> Marks:
    """The marks, none above its metric's and role's limit."""
    for key, nodes in marks.items():
        if len(nodes) >= QUORUM and (most := limit(network, key, nodes)) < 1.0:
            marks[key] = {node: (at, min(value, most), sound) for node, (at, value, sound) in nodes.items()}
    return marks


def limit(network: Network, key: Key, nodes: Mapping[str, Mark]) -> float:
    """The value above which a node counts no further, as so much is suspect beside the others; 1.0: there is none."""
    if len(nodes) < QUORUM or not network.outlier_factor or key[0] == THREAT:
        return 1.0
    ordered = sorted(value for _, value, _ in nodes.values())
    return min(1.0, network.outlier_factor * max(ordered[len(ordered) // 2], LEAST_MEDIAN))


def combined(network: Network, marks: Marks) -> Levels:
    whole: dict[str, list[dict[str, Mark]]] = {}
    paths: dict[tuple[str, str], list[dict[str, Mark]]] = {}
    levels = Levels({}, {}, {}, set())
    for (metric, role, region), nodes in marks.items():
        levels.nodes.update(nodes)
        if region:
            paths.setdefault((region, metric), []).append(nodes)
            continue
        whole.setdefault(metric, []).append(nodes)
        if role:
            value = merge(method_of(network, metric), [nodes], network.min_nodes)
            if value is not None:
                levels.roles[role, metric] = value
    for metric, parts in whole.items():
        value = merge(method_of(network, metric), parts, 1)
        if value is not None:
            levels.metrics[metric] = value
    for of, parts in paths.items():
        value = merge(method_of(network, of[1]), parts, network.min_nodes)
        if value is not None:
            levels.regions[of] = value
    return levels


def merge(method: Aggregation, parts: Sequence[Mapping[str, Mark]], share_by: int) -> float | None:
    """The value of several roles' nodes; None if fewer than `share_by` have a say. A node of two roles is one."""
    if len(parts) == 1:
        return combine(method, parts[0].values(), share_by)
    by_node: dict[str, list[Mark]] = {}
    for part in parts:
        for node, mark in part.items():
            by_node.setdefault(node, []).append(mark)
    return combine(method, [fold(method, marks) for marks in by_node.values()], share_by)


def fold(method: Aggregation, marks: Sequence[Mark]) -> Mark:
    """One mark of a node's several."""
    if method == "mean":
        return 0.0, math.fsum(value for _, value, _ in marks) / len(marks), True
    return max(marks, key=lambda mark: (mark[2], mark[1]))


def combine(method: Aggregation, marks: Collection[Mark], share_by: int) -> float | None:
    """One value of several nodes' marks; None if fewer than `share_by` nodes have a say."""
    if len(marks) < share_by:
        return None
    if len(marks) == 1:
        ((_, value, _),) = marks
        return value
    if method == "mean":
        return math.fsum([value for _, value, _ in marks]) / len(marks)
    ordered = sorted([value for _, value, sound in marks if sound])
    if not ordered:
        ordered = sorted([value for _, value, _ in marks])
    count = len(ordered)
    if count < share_by:
        return None
    rank = count if method == "max" else -(-19 * count // 20)
    return ordered[min(rank, count - share_by + 1) - 1]
