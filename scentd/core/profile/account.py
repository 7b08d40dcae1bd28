"""How each level of a profile came about, from the same samples, by the same functions. Pure; for `scentd explain`."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import NamedTuple

from scentd.config.sections import Network
from scentd.core.profile import aggregate, score
from scentd.core.profile.aggregate import Levels, Marks
from scentd.core.profile.roll import Entry, judge, key_of, number
from scentd.model import EventAccount, GroupAccount, LevelAccount, ProfileAccount, Sample, SampleAccount, SecurityEvent

# What 1.0 is, by metric; the source's settings say how much that is.
UNITS = {
    "cpu": "of all processors",
    "memory": "of the memory",
    "bandwidth_in": "of the source's capacity",
    "bandwidth_out": "of the source's capacity",
    "latency": "of the source's latency_full",
    "jitter": "of the source's jitter_full",
    "retransmits": "of the source's retransmits_full",
    "threat": "certainly attacked",
    "database_load": "of the source's full",
    "request_load": "of the source's full",
}
PRIVATE_UNIT = "of the source's full"


class Inputs(NamedTuple):
    """What a statement was made of."""

    at: float
    entries: Sequence[Entry]
    events: Sequence[SecurityEvent]
    watched: bool


def account(network: Network, inputs: Inputs) -> ProfileAccount:
    """Never raises."""
    samples = [entry.sample for entry in inputs.entries]
    levels, active = score.measured(network, samples, inputs.events, inputs.at, inputs.watched)
    statement = score.stated(network, levels, active)
    marks = aggregate.newest(network, samples, inputs.at)
    limits = {key: aggregate.limit(network, key, nodes) for key, nodes in marks.items()}
    told: dict[str, list[SampleAccount]] = {}
    for entry in inputs.entries:
        made = sample_account(network, entry, marks, limits.get(key_of(entry.sample), 1.0), inputs.at)
        told.setdefault(entry.sample.metric, []).append(made)
    items = score.characteristics(network, levels, active)
    return ProfileAccount(
        at=inputs.at,
        steps=network.steps,
        overall=statement.overall,
        levels=[
            level_account(network, levels, metric, told.get(metric, [])) for metric in sorted({*levels.metrics, *told})
        ],
        groups=group_accounts(network, levels, marks),
        events=[EventAccount(kind=k, node=n, severity=s) for (k, n), s in sorted(active.items())],
        items=[item for item in items if item in statement.items],
        left_out={
            item: f"no room beside {len(statement.items)} others" for item in items if item not in statement.items
        },
        affected=sorted(map(str, statement.affected)),
    )


def level_account(network: Network, levels: Levels, metric: str, samples: list[SampleAccount]) -> LevelAccount:
    value = levels.metrics.get(metric)
    method = "joined" if metric == aggregate.THREAT else aggregate.method_of(network, metric)
    return LevelAccount(
        metric=metric,
        unit=UNITS.get(metric, PRIVATE_UNIT),
        aggregation=method,
        nodes=len({s.node for s in samples if s.counts is not None and not s.region}),
        value=value,
        level=None if value is None else score.quantise(value, network.steps),
        weight=network.weights.get(metric, 1.0),
        samples=sorted(samples, key=lambda s: (s.region, s.role, s.node)),
    )


def sample_account(network: Network, entry: Entry, marks: Marks, most: float, now: float) -> SampleAccount:
    """`most`: the limit of its metric and role."""
    sample = entry.sample
    nodes = marks.get(key_of(sample), {})
    state, reason = judge(entry, network, most, now)
    counts = None
    if sample.node in nodes:
        _, value, sound = nodes[sample.node]
        left_out = not sound and aggregate.method_of(network, sample.metric) != "mean" and any_sound(marks, sample)
        counts = None if left_out else min(value, most)
    return SampleAccount(
        node=sample.node,
        role=sample.role,
        region=sample.region,
        value=value if isfinite(value := number(sample.value)) else None,
        counts=counts,
        age=max(0.0, now - entry.arrived),
        state=state,
        reason=reason,
    )


def any_sound(marks: Marks, sample: Sample) -> bool:
    """Whether a node has a value in range for this metric, of whatever role."""
    return any(
        sound
        for (metric, _, region), nodes in marks.items()
        if (metric, region) == (sample.metric, sample.region)
        for _, _, sound in nodes.values()
    )


def group_accounts(network: Network, levels: Levels, marks: Marks) -> list[GroupAccount]:
    nodes: dict[tuple[str, str, str], set[str]] = {}
    for (metric, role, region), of in marks.items():
        if role or region:
            nodes.setdefault((region, "" if region else role, metric), set()).update(of)
    made = []
    for (region, role, metric), names in sorted(nodes.items()):
        value = levels.regions.get((region, metric)) if region else levels.roles.get((role, metric))
        why_not = ""
        if value is None:
            why_not = f"network.min_nodes is {network.min_nodes}"
        elif role and score.is_host(role, levels.nodes):
            why_not = "a role that is a node is not sent"
        elif not score.is_value(region or role):
            why_not = "its name has a character that an item must not have, or too many"
        made.append(
            GroupAccount(
                role=role,
                region=region,
                metric=metric,
                nodes=len(names),
                level=None if value is None else score.quantise(value, network.steps),
                word="" if value is None else score.level_word(network, value),
                why_not=why_not,
            )
        )
    return made
