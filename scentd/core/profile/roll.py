"""The roll of a network's nodes: what collectors say, bounded, and how each node does. Pure.

A node that `[[network.node]]` does not name, where it names any, leaves nothing here but a count. Without such a list a
network has whatever nodes its collectors name, MAX_NODES at most.

Whoever says something has a clock, which may be wrong: a sample whose date is further from its arrival than
`network.staleness` does not count, its node is suspect, and the next sample with a right date takes its place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import inf, isfinite
from typing import NamedTuple

from scentd.config.sections import STALE_INTERVALS, Network
from scentd.core.profile import aggregate
from scentd.core.profile.aggregate import QUORUM, SLACK, STANDARD_METRICS, is_fresh
from scentd.model import NodeState, Sample, Samples, SecurityEvent, SourceState

MAX_NODES = 4096
MAX_COLLECTORS = MAX_NODES  # a collector on each node
MAX_SERIES = 64  # of one node: metric, role and region
MAX_SAMPLES = 65_536  # of one Samples
MAX_EVENTS = 4096  # of one collector
HOLD_MAX = 86_400.0  # seconds for which an event may count, if its collector falls silent and says no more of it
FORGET = 20  # times the staleness: after that an unlisted node is forgotten

COUNTERS = (
    "late",  # Samples older than the collector's last
    "unknown_node",  # samples
    "unknown_metric",
    "not_finite",
    "out_of_range",
    "wrong_clock",  # samples dated too far from their arrival
    "duplicate",  # samples that differ from another of the same moment, metric, node, role and region
    "too_many_samples",  # beyond MAX_SAMPLES of one message
    "too_many_nodes",  # samples of nodes beyond MAX_NODES
    "too_many_series",  # samples beyond MAX_SERIES of a node
    "too_many_collectors",  # Samples of collectors beyond MAX_COLLECTORS
    "too_many_events",  # beyond MAX_EVENTS of a collector: the mildest
)


class Heard(NamedTuple):
    """The last Samples of a collector, but for the samples."""

    at: float
    arrived: float
    events: tuple[SecurityEvent, ...]
    watched: bool


class Entry(NamedTuple):
    sample: Sample
    arrived: float


Series = dict[tuple[str, str, str], Entry]  # by metric, role and region


class Roll:
    def __init__(self, network: Network, now: float) -> None:
        self._network = network
        self._since = now
        self._collectors: dict[str, Heard] = {}
        self._series: dict[str, Series] = {}  # by node
        self._names = {a: node.name for node in network.node for a in (node.name, *node.addresses)}
        self._roles = {node.name: node.role for node in network.node if node.role}
        self._local = {source.node for source in network.source}  # whoever our own sources speak of is no stranger
        self.counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))

    def adopt(self, old: Roll) -> None:
        """Take over what `old` has heard, of nodes and metrics that the network still has."""
        self._since, self._collectors, self.counters = old._since, old._collectors, old.counters
        for entry in old.entries():
            if self._knows(entry.sample):
                self._series.setdefault(entry.sample.node, {})[key_of(entry.sample)] = entry

    def take(self, samples: Samples, now: float) -> bool:
        """Take what a collector says; whether there was anything in it that counts."""
        before, span = self._collectors.get(samples.collector), self._network.staleness
        right = is_fresh(samples.at, span, now)
        if before is not None and right and samples.at < before.at and is_fresh(before.at, span, now):
            self.counters["late"] += 1
            return False
        if before is None and len(self._collectors) >= MAX_COLLECTORS:
            self.counters["too_many_collectors"] += 1
            return False
        taken = self._take_samples(samples, now)
        if not taken and samples.samples and not samples.events:
            return False  # of strangers alone: it leaves nothing here
        heard = Heard(samples.at, now, tuple(self._dated(samples, now)), samples.watched)
        if before is not None and not right:
            # Nobody knows whether this is older than what was heard before: it adds to that, and takes nothing away.
            both = {(e.kind, e.node, e.severity): e for e in (*before.events, *heard.events)}
            heard = heard._replace(at=before.at, events=tuple(self._worst(tuple(both.values()))))
        self._collectors[samples.collector] = heard
        return True

    def prune(self, now: float) -> None:
        """Forget collectors that have fallen silent and whose events have ended, and unlisted nodes after a while."""
        span = self._network.staleness
        for name, heard in list(self._collectors.items()):
            events = tuple(event for event in heard.events if event.until > now)
            if not events and not is_fresh(heard.arrived, span, now):
                del self._collectors[name]
            elif len(events) < len(heard.events):
                self._collectors[name] = heard._replace(events=events)
        for node, series in list(self._series.items()):
            for key, entry in list(series.items()):
                if not is_fresh(entry.arrived, FORGET * span, now):
                    del series[key]
            if not series:
                del self._series[node]

    def entries(self) -> list[Entry]:
        """The newest of each metric, node, role and region, whatever its age and value."""
        return [entry for series in self._series.values() for entry in series.values()]

    def events(self) -> list[SecurityEvent]:
        return [event for heard in self._collectors.values() for event in heard.events]

    def watched(self, now: float) -> bool:
        """Whether a source looks for security events."""
        span = self._network.staleness
        return any(heard.watched and is_fresh(heard.arrived, span, now) for heard in self._collectors.values())

    def collectors(self, now: float) -> set[str]:
        """Those that have said something in the last intervals, so that it is worth while to wait for them."""
        span = STALE_INTERVALS * self._network.interval
        return {name for name, heard in self._collectors.items() if is_fresh(heard.arrived, span, now)}

    def nodes(self, now: float) -> list[NodeState]:
        """Every node that is expected or has been heard of."""
        limits = self._limits(now)
        listed = [node.name for node in self._network.node]
        others = [name for name in self._series if name not in self._names]
        return [self._state(name, limits, now) for name in [*listed, *others]]

    # -- samples -------------------------------------------------------------

    def _take_samples(self, samples: Samples, now: float) -> bool:
        """Whether one of them is of a node and metric of ours."""
        taken = False
        self.counters["too_many_samples"] += max(0, len(samples.samples) - MAX_SAMPLES)
        for raw in samples.samples[:MAX_SAMPLES]:
            sample = self._named(raw, samples.collector)
            if not self._knows(sample):
                name = "unknown_metric" if self._knows_node(sample.node) else "unknown_node"
                self.counters[name] += 1
                continue
            taken |= self._enter(sample, now)
        return taken

    def _named(self, sample: Sample, collector: str) -> Sample:
        """The sample under its node's listed name and role. Who names no node speaks of the collector's host."""
        node = sample.node or collector
        node = self._names.get(node, node)
        role = self._roles.get(node, sample.role)
        return sample if (node, role) == (sample.node, sample.role) else replace(sample, node=node, role=role)

    def _knows(self, sample: Sample) -> bool:
        known = sample.metric in STANDARD_METRICS or sample.metric in self._network.metrics
        return known and self._knows_node(sample.node)

    def _knows_node(self, node: str) -> bool:
        return not self._names or node in self._names or node in self._local

    def _enter(self, sample: Sample, now: float) -> bool:
        series = self._series.get(sample.node)
        if series is None:
            if len(self._series) >= MAX_NODES:
                self.counters["too_many_nodes"] += 1
                return False
            series = self._series[sample.node] = {}
        key, span = key_of(sample), self._network.staleness
        before = series.get(key)
        if before is None and len(series) >= MAX_SERIES:
            self.counters["too_many_series"] += 1
            return False
        if before is not None and before.sample == sample:
            return True  # an alarm repeats the samples at hand
        if before is not None and is_fresh(before.sample.at, span, now):
            if sample.at < before.sample.at:
                self.counters["wrong_clock"] += not is_fresh(sample.at, span, now)
                return True  # a slow source's, or of a clock that went back: what is newer is here already
            if sample.at == before.sample.at:
                self.counters["duplicate"] += 1
                if rank(sample) <= rank(before.sample):
                    return True
        self._count(sample, now)
        series[key] = Entry(sample, now)
        return True

    def _count(self, sample: Sample, now: float) -> None:
        if not is_fresh(sample.at, self._network.staleness, now):
            self.counters["wrong_clock"] += 1
        if not isfinite(number(sample.value)):
            self.counters["not_finite"] += 1
        elif not -SLACK <= sample.value <= 1.0 + SLACK:
            self.counters["out_of_range"] += 1

    # -- events --------------------------------------------------------------

    def _dated(self, samples: Samples, now: float) -> Iterator[SecurityEvent]:
        """The events with their ends by our clock. A collector's clock that is wrong ends none early."""
        offset = 0.0 if is_fresh(samples.at, self._network.staleness, now) else now - number(samples.at)
        for event in self._worst(samples.events):
            until = min(number(event.until) + offset, now + HOLD_MAX)
            if not isfinite(until):
                until = now + self._network.staleness
            yield event if until == event.until else replace(event, until=until)

    def _worst(self, events: tuple[SecurityEvent, ...]) -> Iterable[SecurityEvent]:
        if len(events) <= MAX_EVENTS:
            return events
        self.counters["too_many_events"] += len(events) - MAX_EVENTS
        return sorted(events, key=lambda event: aggregate.clamp(event.severity) or 0.0, reverse=True)[:MAX_EVENTS]

    # -- nodes ---------------------------------------------------------------

    def _limits(self, now: float) -> dict[tuple[str, str, str], float]:
        if len(self._series) < QUORUM:
            return {}
        marks = aggregate.newest(self._network, (entry.sample for entry in self.entries()), now)
        return {key: aggregate.limit(self._network, key, nodes) for key, nodes in marks.items()}

    def _state(self, name: str, limits: dict[tuple[str, str, str], float], now: float) -> NodeState:
        series = self._series.get(name, {})
        roles = tuple(sorted({entry.sample.role for entry in series.values()} - {""}))
        age = min((max(0.0, now - entry.arrived) for entry in series.values()), default=None)
        judged = [judge(entry, self._network, limits.get(key, 1.0), now) for key, entry in series.items()]
        suspect = [reason for state, reason in judged if state == "suspect"]
        state: SourceState = "fresh"
        reason = ""
        if suspect:
            state, reason = "suspect", "; ".join(sorted(suspect)[:3])
        elif age is None:
            state, reason = "stale", f"nothing has come in {now - self._since:.0f} s"
        elif all(state == "stale" for state, _ in judged):
            state, reason = "stale", f"silent for {age:.0f} s"
        return NodeState(name, roles, state, reason, age, name in self._names)


def key_of(sample: Sample) -> tuple[str, str, str]:
    return sample.metric, sample.role, sample.region


def rank(sample: Sample) -> tuple[bool, float]:
    """Of two samples of one moment the higher counts, and a number before what is none."""
    value = number(sample.value)
    return isfinite(value), value if isfinite(value) else 0.0


def judge(entry: Entry, network: Network, most: float, now: float) -> tuple[SourceState, str]:
    """How a newest sample stands, and why it does not count as it is. `most`: the limit of its metric and role."""
    sample, span = entry.sample, network.staleness
    if not is_fresh(entry.arrived, span, now):
        return "stale", f"{sample.metric}: silent for {now - entry.arrived:.0f} s"
    if not is_fresh(sample.at, span, entry.arrived):
        return "suspect", f"{sample.metric}: its clock is {offset_text(sample.at, entry.arrived)}"
    if not is_fresh(sample.at, span, now):
        return "stale", f"{sample.metric}: of {now - sample.at:.0f} s ago"
    if 0.0 <= sample.value <= most:
        return "fresh", ""
    if not isfinite(number(sample.value)):
        return "suspect", f"{sample.metric}: not a number"
    if not -SLACK <= sample.value <= 1.0 + SLACK:
        return "suspect", f"{sample.metric}: {number(sample.value):.10g} is out of 0 to 1"
    if sample.value > most:
        return "suspect", f"{sample.metric}: {sample.value:.2f} beside the others' median, counts as {most:.2f}"
    return "fresh", ""


def offset_text(at: float, now: float) -> str:
    offset = number(at) - now
    return f"{abs(offset):.10g} s {'ahead' if offset > 0 else 'behind'}"


def number(value: float) -> float:
    """The value as a float: an integer beyond all floats is infinite."""
    try:
        return float(value)
    except OverflowError:
        return inf if value > 0 else -inf
