"""Samples and events to the statement of one epoch.

    level of a metric  = mean over nodes and roles of the newest sample of each
    threat             = 1 - prod(1 - severity) over active events, distinct by kind and node
    overall            = weighted mean of the known levels

Rules of this file: pure, never raises for any sample or event, every number it
returns is one of `network.steps` steps within 0.0 .. 1.0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from ipaddress import ip_address

from scentd.config.sections import Network
from scentd.model import Sample, Samples, SecurityEvent, Statement
from scentd.prefix import Address
from scentd.wire import layout

STANDARD_METRICS = frozenset(layout.METRICS.values())

SAMPLE_INTERVALS = 3  # intervals for which a sample counts if there is no newer one

# 24 items set at most 120 of the filter's 256 bits: one foreign item in 140 is a false positive,
# (1 - e^(-120/256))^5. Where nodes are named (two items, ten bits each) the others make room: 12 items and 8 nodes
# set 140 bits at most, and an innocent node is taken for an affected one once in 5,800.
MAX_ITEMS = 24
MAX_ITEMS_BESIDE_NODES = 12
MAX_AFFECTED = 8


def is_fresh(at: float, interval: float, now: float) -> bool:
    """Whether a sample of the time `at` still counts. A clock that runs ahead makes no sample count for longer."""
    span = SAMPLE_INTERVALS * interval
    return now - span < at < now + span


def gather(parts: Iterable[Samples], interval: float, now: float) -> tuple[list[Sample], list[SecurityEvent], bool]:
    """(samples, events, whether a source watches for events) of several collectors, `interval` in seconds.

    Samples that a collector sent more than SAMPLE_INTERVALS intervals ago do not count: the collector may be dead.
    """
    fresh = [part for part in parts if is_fresh(part.at, interval, now)]
    samples = [sample for part in fresh for sample in part.samples]
    return samples, [event for part in fresh for event in part.events], any(part.watched for part in fresh)


def statement(
    network: Network,
    samples: Sequence[Sample],
    events: Sequence[SecurityEvent],
    now: float,
    watched: bool = False,
) -> Statement:
    """The statement of `network` at `now` (Unix seconds, the clock of SecurityEvent.until).

    Left out are samples of metrics that the network does not have, values that are not finite, and samples older than
    SAMPLE_INTERVALS intervals. Other values are clamped to 0.0 .. 1.0. `watched`: a source looks for security events,
    so without an event the threat is 0.0 and not unknown. Never raises.
    """
    active: dict[tuple[str, str], float] = {}
    for event in events:
        if event.until > now:
            severity = clamp(event.severity)
            key = event.kind, event.node
            if severity is not None and severity >= active.get(key, 0.0):
                active[key] = severity

    metrics, groups = means(network, [s for s in samples if is_fresh(s.at, network.interval, now)])
    if watched or active or "threat" in metrics:
        # The threat that another source measured is one more independent sign.
        metrics["threat"] = threat(active, metrics.get("threat", 0.0))

    steps = network.steps
    overall = weighted_mean(metrics, network.weights)
    levels = {metric: quantise(value, steps) for metric, value in metrics.items()}
    by_group = {key: quantise(value, steps) for key, value in groups.items()}
    nodes = affected_nodes(active)
    return Statement(
        interval=int(network.interval),
        overall=None if overall is None else quantise(overall, steps),
        levels=levels,
        items=characteristics(
            network, levels, by_group, {kind for kind, _ in active}, MAX_ITEMS_BESIDE_NODES if nodes else MAX_ITEMS
        ),
        affected=nodes,
    )


def affected_nodes(active: Mapping[tuple[str, str], float]) -> frozenset[Address]:
    """The nodes with the most severe events, at most MAX_AFFECTED, so that the filter keeps its meaning."""
    worst: dict[Address, float] = {}
    for (_, name), severity in active.items():
        node = address(name) if name else None
        if node is not None:
            worst[node] = max(severity, worst.get(node, 0.0))
    ranked = sorted(worst, key=lambda node: (-worst[node], node.version, int(node)))
    return frozenset(ranked[:MAX_AFFECTED])


def means(network: Network, samples: Sequence[Sample]) -> tuple[dict[str, float], dict[tuple[str, str], float]]:
    """Mean per metric, and per (group, metric) where a role or region is given, of the newest sample of each node.

    A group is "role=R" or "region=R". A sample with a region is of the path to there, and counts in its group alone.
    A group of fewer than `network.min_nodes` samples is left out: its mean would reveal single nodes.
    """
    newest: dict[tuple[str, str, str, str], tuple[float, float]] = {}
    for sample in samples:
        value = sample.value
        if not 0.0 <= value <= 1.0:
            clamped = clamp(value)
            if clamped is None:
                continue
            value = clamped
        key = sample.metric, sample.role, sample.region, sample.node
        older = newest.get(key)
        if older is None or sample.at >= older[0]:
            newest[key] = sample.at, value
    sums: dict[str, tuple[float, int]] = {}  # with the count
    group_sums: dict[tuple[str, str], tuple[float, int]] = {}
    for (metric, role, region, _), (_, value) in newest.items():
        if metric not in STANDARD_METRICS and metric not in network.metrics:
            continue
        if not region:
            total, count = sums.get(metric, (0.0, 0))
            sums[metric] = total + value, count + 1
        if region or role:
            group = f"region={region}" if region else f"role={role}"
            total, count = group_sums.get((group, metric), (0.0, 0))
            group_sums[group, metric] = total + value, count + 1
    return (
        {key: total / count for key, (total, count) in sums.items()},
        {key: total / count for key, (total, count) in group_sums.items() if count >= network.min_nodes},
    )


def threat(active: Mapping[tuple[str, str], float], measured: float) -> float:
    """The chance that one of so many independent signs is real, if each severity is a probability (noisy-or)."""
    quiet = 1.0 - measured
    for severity in active.values():
        quiet *= 1.0 - severity
    return 1.0 - quiet


def weighted_mean(levels: Mapping[str, float], weights: Mapping[str, float]) -> float | None:
    """The weighted mean of levels; None if there is no level, or every level has weight 0."""
    total = sum(weights.get(metric, 1.0) for metric in levels)
    if not 0.0 < total < math.inf:  # a weight may be configured as inf
        return None
    # Shares first, products after: a weight near the largest float does not overflow.
    return sum(value * (weights.get(metric, 1.0) / total) for metric, value in levels.items())


def clamp(value: float) -> float | None:
    """`value` within 0.0 .. 1.0, None for NaN and the infinities."""
    if 0.0 <= value <= 1.0:
        return value
    if value - value != 0.0:  # NaN and infinities, the only numbers not equal to themselves less themselves
        return None
    return 0.0 if value < 0.0 else 1.0


def quantise(value: float, steps: int) -> float:
    """The nearest of the levels 0, 1/steps .. 1; half a step rounds up. `value`: 0.0 .. 1.0, give or take an ulp."""
    return int(value * steps + 0.5) / steps


def characteristics(
    network: Network,
    levels: Mapping[str, float],
    by_group: Mapping[tuple[str, str], float],
    kinds: set[str],
    limit: int = MAX_ITEMS,
) -> frozenset[str]:
    """At most `limit` items: events, labels, high levels (network, region, role), then the rest."""
    high, low = network.high, network.low
    items = [*(f"event={kind}" for kind in sorted(kinds)), *network.labels]
    rest: list[str] = []
    for metric in sorted(levels):
        level = levels[metric]
        if level >= high:
            items.append(f"metric={metric};level=high")
        else:
            rest.append(f"metric={metric};level={'low' if level < low else 'medium'}")
    for group, metric in sorted(by_group):
        level = by_group[group, metric]
        if level >= high:
            items.append(f"{group};metric={metric};level=high")
        else:
            rest.append(f"{group};metric={metric};level={'low' if level < low else 'medium'}")
    # dict.fromkeys, not set: what is cut off must not depend on the hash seed of the process.
    return frozenset(list(dict.fromkeys(items + rest))[:limit])


@lru_cache(maxsize=4096)
def address(text: str) -> Address | None:
    """A node's address; None if the node has a name instead."""
    try:
        return ip_address(text)
    except ValueError:
        return None
