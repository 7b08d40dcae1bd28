"""Prometheus metrics, made from the status document: the root process serves no HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from scentd.control.status import STATES, PeerStatus, ProfileStatus, Status
from scentd.errors import HostError

# (name, help, field of the status document)
PLAIN = (
    ("scentd_stamped_packets", "Packets that left with a scent", "stamped"),
    ("scentd_accepted_packets", "Packets whose scent was accepted and stripped", "accepted"),
    ("scentd_absent_packets", "Packets without a scent where one was looked for", "absent"),
    ("scentd_profiles", "Verified profiles assembled", "profiles"),
    ("scentd_worker_restarts", "Workers that ended and were started anew", "worker_restarts"),
)
# (name, help, field, label)
LABELLED = (
    ("scentd_rejected_packets", "Packets refused, by reason", "rejected", "reason"),
    ("scentd_unstamped_packets", "Packets that left without a scent, by reason", "unstamped", "reason"),
    ("scentd_profile_errors", "Whole profiles that were wrong, by reason", "profile_errors", "reason"),
    ("scentd_reloads", "Configuration reloads", "reloads", "result"),
    ("scentd_beacons", "Beacons", "beacons", "result"),
    ("scentd_other", "Other counters", "other", "name"),
)

STRANGERS, OTHERS = "(strangers)", "(others)"  # no peer has such a name


class StatusMetrics:
    """Turns status documents into metric families. `status()` returns one, None if the daemon does not answer."""

    def __init__(self, status: Callable[[], Status | None]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        up = GaugeMetricFamily("scentd_up", "Whether the daemon answered")
        up.add_metric([], float(status is not None))
        yield up
        if status is not None:
            yield from counters(status)
            yield from networks(status)
            yield from servers(status)
            yield from bus(status)
            yield from peers(status)
            yield from traffic(status)
            yield from allocation(status)


def counters(status: Status) -> Iterator[Metric]:
    for name, text, field in PLAIN:
        yield CounterMetricFamily(name, text, value=getattr(status, field))
    for name, text, field, label in LABELLED:
        yield labelled(CounterMetricFamily(name, text, labels=[label]), msgspec.to_builtins(getattr(status, field)))
    info = GaugeMetricFamily("scentd_info", "1; the daemon's version is the label", labels=["version"])
    info.add_metric([status.version], 1.0)
    yield info
    for name, text, value in (
        ("scentd_offload_in_place", "Whether the BPF programs do the work", not status.offload.why_not),
        ("scentd_offload_wanted", "Whether the configuration wants them", status.offload.wanted),
        (
            "scentd_rules_in_place",
            "Whether the last look at the host found all as it should be",
            not status.rules_why_not,
        ),
        ("scentd_guard_connected", "Whether a guard is there", status.guard.connected),
    ):
        family = GaugeMetricFamily(name, text)
        family.add_metric([], float(value))
        yield family
    text = "How often something of ours on the host was put back after others had removed or changed it"
    yield CounterMetricFamily("scentd_rules_restored", text, value=status.rules_restored)
    closed = GaugeMetricFamily("scentd_closed", "Whether the guard keeps something closed")
    closed.add_metric([], float(status.guard.connected and status.guard.closed))
    yield closed
    yield labelled(
        CounterMetricFamily("scentd_guard_packets", "Packets that the guard dropped, let in or held", labels=["name"]),
        {n: getattr(status.guard, n) for n in ("dropped", "excepted", "released", "given_up")},
    )
    text = "Counters of actuators and the history"
    yield labelled(GaugeMetricFamily("scentd_actuator", text, labels=["name"]), status.actuators)


def labelled(family: CounterMetricFamily | GaugeMetricFamily, values: Mapping[str, float]) -> Metric:
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def networks(status: Status) -> Iterator[Metric]:
    collectors = CounterMetricFamily("scentd_collector", "Counters of collectors", labels=["network", "name"])
    levels = GaugeMetricFamily("scentd_level", "Levels issued here, 0 to 1", labels=["network", "metric"])
    text = (
        "Intervals since a network's newest epoch was issued here; above 2 its packets may soon leave without a scent"
    )
    lag = GaugeMetricFamily("scentd_epoch_lag_intervals", text, labels=["network"])
    text = "Samples and nodes of a network that its profiler here refused, clipped or noticed, by name"
    intake = CounterMetricFamily("scentd_intake", text, labels=["network", "name"])
    nodes = GaugeMetricFamily("scentd_nodes", "Nodes that a profiler here knows, by state", labels=["network", "state"])
    text = "Sources of this host: 1 for the state that each is in"
    sources = GaugeMetricFamily("scentd_source_state", text, labels=["network", "source", "state"])
    # Of a standby nobody expects epochs.
    stands_by = status.bus is not None and status.bus.lease is not None and not status.bus.lease.active
    for network in status.networks:
        for name, count in network.collectors.items():
            collectors.add_metric([network.name, name], count)
        for name, count in network.intake.items():
            intake.add_metric([network.name, name], count)
        for state in STATES if network.nodes else ():
            nodes.add_metric([network.name, state], network.node_states.get(state, 0))
        for source in network.sources:
            for state in STATES:
                sources.add_metric([network.name, source.name, state], float(source.state == state))
        add_levels(levels, network.name, network.levels, network.overall)
        if network.epoch and network.interval and not stands_by:
            lag.add_metric([network.name], max(0.0, time.time() - network.epoch) / network.interval)
    yield collectors
    yield intake
    yield nodes
    yield sources
    yield levels
    yield lag


def servers(status: Status) -> Iterator[Metric]:
    text = "Answers of a Prometheus server: series, and what was left out"
    counted = CounterMetricFamily("scentd_prometheus_server", text, labels=["server", "name"])
    text = "Whether a query to a Prometheus server fails"
    failing = GaugeMetricFamily("scentd_prometheus_query_failing", text, labels=["server", "metric"])
    for server in status.prometheus_servers:
        for name, count in server.counters.items():
            counted.add_metric([server.name, name], count)
        for metric in dict.fromkeys(query.metric for query in server.queries):  # a metric may have several
            fails = any(query.why_not for query in server.queries if query.metric == metric)
            failing.add_metric([server.name, metric], float(fails))
    yield counted
    yield failing


def bus(status: Status) -> Iterator[Metric]:
    counted = CounterMetricFamily("scentd_bus", "Messages between hosts, and those refused, by reason", labels=["name"])
    connected = GaugeMetricFamily("scentd_bus_connected", "Whether there is a connection to a NATS server")
    active = GaugeMetricFamily("scentd_bus_active", "Whether the profiler here is the one that issues")
    text = "Whether the allocator here is the one that decides"
    allocates = GaugeMetricFamily("scentd_bus_allocator_active", text)
    if status.bus is not None:
        for name, count in status.bus.counters.items():
            counted.add_metric([name], count)
        connected.add_metric([], float(status.bus.connected))
        if status.bus.lease is not None:
            active.add_metric([], float(status.bus.lease.active))
        if status.bus.allocation_lease is not None:
            allocates.add_metric([], float(status.bus.allocation_lease.active))
    yield counted
    yield connected
    yield active
    yield allocates


def peers(status: Status) -> Iterator[Metric]:
    levels = GaugeMetricFamily("scentd_peer_level", "Levels received, 0 to 1", labels=["peer", "metric"])
    age = GaugeMetricFamily("scentd_profile_age_seconds", "Age of a peer's newest profile", labels=["peer"])
    text = "Seconds from one profile of a peer to its next, as the newest states it"
    interval = GaugeMetricFamily("scentd_profile_interval_seconds", text, labels=["peer"])
    text = "1 for a peer that this host verifies and has no profile of"
    without = GaugeMetricFamily("scentd_peer_without_profile", text, labels=["peer"])
    expected = {peer.name for peer in status.peers if peer.verified}
    for name, profile in newest_profiles(status.peers).items():
        if profile is not None:
            add_levels(levels, name, profile.levels, profile.overall)
            age.add_metric([name], profile.age)
            interval.add_metric([name], profile.interval)
        elif name in expected:
            without.add_metric([name], 1.0)
    yield from (levels, age, interval, without)


def newest_profiles(peers: Iterable[PeerStatus]) -> dict[str, ProfileStatus | None]:
    """The newest profile of each peer by name: several networks of ours may know one peer, and a series stands once."""
    newest: dict[str, ProfileStatus | None] = {}
    for peer in peers:
        known = newest.setdefault(peer.name, peer.profile)
        if peer.profile is not None and (known is None or peer.profile.age < known.age):
            newest[peer.name] = peer.profile
    return newest


def traffic(status: Status) -> Iterator[Metric]:
    """Packets by peer; STRANGERS is who is no peer, OTHERS are the peers that the document leaves out, as a sum."""
    accepted = CounterMetricFamily("scentd_peer_accepted", "Packets of a peer that were accepted", labels=["peer"])
    by_detail = [
        (CounterMetricFamily(f"scentd_peer_{field}", text, labels=["peer", label]), field)
        for field, label, text in (
            ("rejected", "reason", "Packets of a peer that were refused"),
            ("absent", "treatment", "Packets of a peer without a scent"),
            ("unstamped", "reason", "Packets to a peer that left without a scent"),
        )
    ]
    let_in = CounterMetricFamily("scentd_peer_let_in", "Wrong packets that were let in all the same", labels=["peer"])
    clock = GaugeMetricFamily(
        "scentd_peer_clock_offset_seconds", "From a peer's epoch to our clock; negative: its is ahead", labels=["peer"]
    )
    at = GaugeMetricFamily("scentd_peer_accepted_at", "Unix time of the last accepted packet", labels=["peer"])
    rest = [(OTHERS, status.omitted.traffic)] if status.omitted.traffic is not None else []
    for peer, counted in [*((t.name, t) for t in status.traffic), (STRANGERS, status.strangers), *rest]:
        accepted.add_metric([peer], counted.accepted)
        let_in.add_metric([peer], counted.let_in)
        for family, field in by_detail:
            for detail, packets in getattr(counted, field).items():
                family.add_metric([peer, detail], packets)
        if counted.clock_offset is not None:
            clock.add_metric([peer], counted.clock_offset)
        if counted.accepted_at is not None:
            at.add_metric([peer], counted.accepted_at)
    yield from (accepted, *(family for family, _ in by_detail), let_in, clock, at)


def allocation(status: Status) -> Iterator[Metric]:
    outcomes = CounterMetricFamily(
        "scentd_policy_outcomes", "How often a policy was looked at, by outcome", labels=["policy", "outcome"]
    )
    for policy in status.allocation.policies:
        for outcome, count in policy.outcomes.items():
            outcomes.add_metric([policy.policy, outcome], count)
    yield outcomes
    made = CounterMetricFamily("scentd_decisions", "Decisions, by action", labels=["action"])
    for action, count in status.allocation.decisions.items():
        made.add_metric([action], count)
    yield made
    yield from amounts(status)
    text = "Seconds since what caused a decision was accepted"
    delay = GaugeMetricFamily("scentd_delay_seconds", text, labels=["step", "value"])
    events = CounterMetricFamily("scentd_delay_events", "Decisions that such a delay was measured of", labels=["step"])
    for step in status.allocation.delays:
        for value, seconds in (("mean", step.mean), ("largest", step.largest), ("last", step.last)):
            delay.add_metric([step.name, value], seconds)
        events.add_metric([step.name], step.count)
    yield delay
    yield events


def amounts(status: Status) -> Iterator[Metric]:
    """What peers should have of resources, what they have, and whether something is in the way."""
    labels = ["kind", "resource", "peer"]
    wanted = GaugeMetricFamily("scentd_resource_wanted", "The amount that policies want", labels=labels)
    observed = GaugeMetricFamily("scentd_resource_observed", "The amount that there is", labels=labels)
    failing = GaugeMetricFamily("scentd_resource_failing", "1 if it cannot be given, or taken back", labels=labels)
    for r in status.allocation.resources:
        names = [r.kind, r.resource, r.peer]
        if r.amount is not None:
            wanted.add_metric(names, r.amount)
        if r.observed is not None:
            observed.add_metric(names, r.observed)
        failing.add_metric(names, float(bool(r.why_not)))
    yield wanted
    yield observed
    yield failing


def add_levels(family: GaugeMetricFamily, name: str, levels: Mapping[str, float], overall: float | None) -> None:
    for metric, value in levels.items():
        family.add_metric([name, metric], value)
    if overall is not None:
        family.add_metric([name, "overall"], overall)


def exposition(status: Status) -> str:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusMetrics(lambda: status))  # type: ignore[arg-type]  # it asks for collect() alone
    return generate_latest(registry).decode()


def serve(status: Callable[[], Status | None], host: str, port: int) -> None:
    """Serve over HTTP, in threads of its own. Each scrape asks anew; scentd_up is 0 without an answer."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusMetrics(status))  # type: ignore[arg-type]
    try:
        start_http_server(port, host, registry)
    except OSError as error:
        raise HostError(f"--listen {host}:{port}: {error.strerror}; choose another port") from None
