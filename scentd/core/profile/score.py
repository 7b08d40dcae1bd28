"""Samples and events to the statement of one epoch.

    level of a metric  = aggregate.py's value of its nodes, rounded to a step: floor(value * steps + 1/2) / steps
    threat             = 1 - (1 - largest threat sample) * prod(1 - severity) over active events, one a kind and node
    overall            = sum(weight * value) / sum(weight) over the known metrics, rounded to a step

Rules of this file: pure, never raises for any sample or event, their order changes nothing, every number it
returns is one of `network.steps` steps within 0.0 .. 1.0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from ipaddress import ip_address

from scentd.config.sections import Network
from scentd.core.profile import aggregate
from scentd.core.profile.aggregate import THREAT, Levels, clamp
from scentd.model import Sample, SecurityEvent, Statement
from scentd.prefix import Address

# 24 items set at most 120 of the filter's 256 bits: one foreign item in 140 is a false positive,
# (1 - e^(-120/256))^5. Where nodes are named (two items, ten bits each) the others make room: 12 items and 8 nodes
# set 140 bits at most, and an innocent node is taken for an affected one once in 5,800.
MAX_ITEMS = 24
MAX_ITEMS_BESIDE_NODES = 12
MAX_AFFECTED = 8

MAX_EVENTS = 1024  # kinds and nodes; more are joined
JOINED = "anomaly", ""  # the kind and node of those
VALUE = re.compile(r"[^;\x00-\x1f\x7f]{1,64}")  # wire/README.md, section 6.4

Active = dict[tuple[str, str], float]  # severity by kind and node


def statement(
    network: Network,
    samples: Iterable[Sample],
    events: Iterable[SecurityEvent],
    now: float,
    watched: bool = False,
) -> Statement:
    """The statement of `network` at `now` (Unix seconds, the clock of SecurityEvent.until). Never raises.

    aggregate.py says which samples count and how much. `watched`: a source looks for security events, so without an
    event the threat is 0.0 and not unknown.
    """
    levels, active = measured(network, samples, events, now, watched)
    return stated(network, levels, active)


def measured(
    network: Network, samples: Iterable[Sample], events: Iterable[SecurityEvent], now: float, watched: bool
) -> tuple[Levels, Active]:
    """What there is to state, before it is quantised: levels, the threat among them, and active events."""
    active = active_events(events, now)
    levels = aggregate.levels(network, samples, now)
    if watched or active or THREAT in levels.metrics:
        # The threat that another source measured is one more independent sign.
        levels.metrics[THREAT] = threat(active.values(), levels.metrics.get(THREAT, 0.0))
    return levels, active


def stated(network: Network, levels: Levels, active: Active) -> Statement:
    steps = network.steps
    overall = weighted_mean(levels.metrics, network.weights)
    nodes = affected_nodes(active, network)
    items = characteristics(network, levels, active)[: MAX_ITEMS_BESIDE_NODES if nodes else MAX_ITEMS]
    return Statement(
        interval=int(network.interval),
        overall=None if overall is None else quantise(overall, steps),
        levels={metric: quantise(value, steps) for metric, value in levels.metrics.items()},
        items=frozenset(items),
        affected=nodes,
        lag=int(network.lag),
    )


def active_events(events: Iterable[SecurityEvent], now: float) -> Active:
    """The largest severity of each kind and node among the events that have not ended.

    Of more than MAX_EVENTS the mildest are joined as so many signs are: a flood costs no more, and is a threat.
    """
    active: Active = {}
    for event in events:
        if event.until > now:
            severity = clamp(event.severity)
            key = event.kind, event.node
            if severity is not None and severity >= active.get(key, 0.0):
                active[key] = severity
    if len(active) <= MAX_EVENTS:
        return active
    ranked = sorted(active, key=lambda key: (-active[key], key))
    bounded = {key: active[key] for key in ranked[:MAX_EVENTS]}
    bounded[JOINED] = threat([active[key] for key in ranked[MAX_EVENTS:]], bounded.get(JOINED, 0.0))
    return bounded


def affected_nodes(active: Active, network: Network) -> frozenset[Address]:
    """The nodes with the most severe events, at most MAX_AFFECTED, so that the filter keeps its meaning."""
    if not active:
        return frozenset()
    worst: dict[Address, float] = {}
    named = {node.name: node.addresses for node in network.node if node.addresses}
    for (_, name), severity in active.items():
        for text in named.get(name) or ((name,) if name else ()):
            node = address(text)
            if node is not None:
                worst[node] = max(severity, worst.get(node, 0.0))
    ranked = sorted(worst, key=lambda node: (-worst[node], node.version, int(node)))
    return frozenset(ranked[:MAX_AFFECTED])


def threat(severities: Iterable[float], measured: float) -> float:
    """The chance that one of so many independent signs is real, if each is a probability (noisy-or)."""
    quiet = 1.0 - measured
    for severity in sorted(severities):  # the order of factors changes the last bit of a product
        quiet *= 1.0 - severity
    return 1.0 - quiet


def weighted_mean(levels: Mapping[str, float], weights: Mapping[str, float]) -> float | None:
    """The weighted mean of levels; None if there is no level, or every level has weight 0."""
    metrics = sorted(levels)  # the order of a sum changes its last bit
    total = sum(weights.get(metric, 1.0) for metric in metrics)
    if not 0.0 < total < math.inf:  # a weight may be configured as inf
        return None
    # Shares first, products after: a weight near the largest float does not overflow.
    return sum(levels[metric] * (weights.get(metric, 1.0) / total) for metric in metrics)


def quantise(value: float, steps: int) -> float:
    """The nearest of the levels 0, 1/steps .. 1; half a step rounds up. `value`: 0.0 .. 1.0, give or take an ulp."""
    return int(value * steps + 0.5) / steps


def level_word(network: Network, value: float) -> str:
    """What a characteristic calls a value: as it is sent, quantised."""
    level = quantise(value, network.steps)
    if level >= network.high:
        return "high"
    return "low" if level < network.low else "medium"


def characteristics(network: Network, levels: Levels, active: Active) -> Sequence[str]:
    """All items, the most telling first: events, labels, high levels (of network, roles, regions), then the rest."""
    items = [f"event={kind}" for kind in sorted({kind for kind, _ in active}) if is_value(kind)]
    items += network.labels
    regional: list[str] = []
    rest: list[str] = []
    for metric in sorted(levels.metrics):
        word = level_word(network, levels.metrics[metric])
        (items if word == "high" else rest).append(f"metric={metric};level={word}")
    for role, metric in sorted(levels.roles):
        if is_value(role) and not is_host(role, levels.nodes):
            word = level_word(network, levels.roles[role, metric])
            (items if word == "high" else rest).append(f"role={role};metric={metric};level={word}")
    for region, metric in sorted(levels.regions):
        if is_value(region):
            word = level_word(network, levels.regions[region, metric])
            (regional if word == "high" else rest).append(f"region={region};metric={metric};level={word}")
    # dict.fromkeys, not set: what is cut off must not depend on the hash seed of the process.
    return list(dict.fromkeys(items + regional + rest))


@lru_cache(maxsize=4096)
def is_value(text: str) -> bool:
    """Whether a text from a sample or event may stand in an item."""
    return VALUE.fullmatch(text) is not None


def is_host(role: str, nodes: Iterable[str]) -> bool:
    """Whether a role is a node's name or an address: nobody outside may tell a node by it."""
    return role in nodes or address(role) is not None


@lru_cache(maxsize=4096)
def address(text: str) -> Address | None:
    """A node's address; None if the node has a name instead."""
    try:
        return ip_address(text)
    except ValueError:
        return None
