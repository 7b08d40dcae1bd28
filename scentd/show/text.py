"""The status document, explanations and events as text for people. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from scentd.control.status import (
    AllocationStatus,
    BusStatus,
    Explanation,
    GuardStatus,
    NetworkStatus,
    OffloadStatus,
    Omitted,
    PeerStatus,
    PeerTraffic,
    PrometheusServerStatus,
    SourceStatus,
    Status,
)
from scentd.model import NodeState


def status(data: Status) -> str:
    lines = [f"scentd {data.version}, {data.datapath}, since {moment(data.started)}"]
    if data.trial_until is not None:
        lines.append(
            f"on trial: the configuration goes back at {moment(data.trial_until)} unless `scentd confirm` follows"
        )
    if data.reverted_at is not None:
        lines.append(
            f"nobody confirmed {data.config}: since {moment(data.reverted_at)} the configuration before it runs again"
        )
    if data.rules_why_not:
        lines.append(f"the host is not as it should be: {data.rules_why_not}")
    if data.rules_restored:
        lines.append(f"put back on the host after others had removed or changed it: {data.rules_restored} time(s)")
    lines += [offload(data.offload), guard(data.guard), ""]
    for network in data.networks:
        lines += network_lines(network)
    for server in data.prometheus_servers:
        lines += server_lines(server)
    if data.bus is not None:
        lines += bus_lines(data.bus)
    changing = {network.name for network in data.networks if network.next_key_id}
    for peer in data.peers:
        lines += peer_lines(peer, peer.network in changing or bool(peer.next_key_id))
    for traffic in data.traffic:
        lines += traffic_lines(traffic)
    lines += omitted(data.omitted)
    lines += stranger_lines(data.strangers)
    lines += ["", f"stamped {data.stamped}, accepted {data.accepted}, absent {data.absent}"]
    lines.append(f"rejected: {counts(data.rejected)}")
    lines.append(f"unstamped: {counts(data.unstamped)}")
    if data.uncovered:
        lines.append(f"left without a scent, as no network.addresses has them: {', '.join(data.uncovered)}")
    lines.append(f"profiles {data.profiles}, wrong: {counts(data.profile_errors)}")
    if data.beacons.failed:
        lines.append(f"beacons sent {data.beacons.sent}, failed {data.beacons.failed}: the log has the reason")
    lines += allocation(data.allocation)
    return "\n".join(lines)


def network_lines(network: NetworkStatus) -> list[str]:
    duties = " ".join(word for word, does in (("signs", network.signs), ("stamps", network.stamps)) if does)
    following = f", next {network.next_key_id}" if network.next_key_id else ""
    lines = [f"network {network.name}  key {network.key_id or '-'}{following}  {duties}".rstrip()]
    if network.epoch:
        lines.append(f"  epoch {network.epoch}, overall {level(network.overall)}")
        lines.append(f"  {levels(network.levels)}")
    lines += state_lines("node", network.node_states, network.nodes)
    lines += state_lines("source", network.source_states, network.sources)
    if any(network.intake.values()):
        lines.append(f"  refused, clipped or noticed of samples: {counts(network.intake)}")
    return lines


STATES_SHOWN = 10  # nodes or sources of a network that are not fresh


def state_lines(what: str, states: dict[str, int], listed: Sequence[NodeState | SourceStatus]) -> list[str]:
    """How many nodes or sources are how, and which of them are not fresh."""
    odd = [one for one in listed if one.state != "fresh"]
    lines = [f"  {what}s: {counts(states)}"] if odd or states.get("fresh", 0) > 1 else []
    lines += [f"    {what} {one.name or 'this host'} is {one.state}: {one.reason}" for one in odd[:STATES_SHOWN]]
    more = sum(states.values()) - states.get("fresh", 0) - len(odd[:STATES_SHOWN])
    return [*lines, f"    and {more} more"] if more > 0 else lines


NOT_REFUSED = ("sent", "sent_bytes", "taken")  # the other counters of the bus are of what was not sent or taken


def bus_lines(bus: BusStatus) -> list[str]:
    lines = [f"bus {bus.name}: " + (f"connected to {bus.server}" if bus.connected else f"not connected: {bus.why_not}")]
    if bus.lease is not None and bus.lease.active:
        lines.append(f"  the active profiler, term {bus.lease.term}")
    elif bus.lease is not None:
        lines.append(f"  issues nothing: {bus.lease.holder or 'nobody'} has the lease")
    allocation = bus.allocation_lease
    if allocation is not None and allocation.active:
        lines.append(f"  the active allocator, term {allocation.term}")
    elif allocation is not None:
        lines.append(f"  decides nothing: {allocation.holder or 'nobody'} has the lease")
    if bus.providing is not None:
        terms = ", ".join(f"{name} (term {term})" for name, term in bus.providing.terms.items()) or "nobody yet"
        names = ", ".join(bus.providing.resources[:STATES_SHOWN])
        told = f"{bus.providing.amounts} amounts, {bus.providing.restricted} with an end"
        failures = f"; desired.db could not be written {bus.providing.file_failures} times"
        lines.append(f"  provides {names}: told by {terms}: {told}{failures if bus.providing.file_failures else ''}")
    lines += [
        f"  {name}: " + ("never heard of" if age is None else f"heard of {age:.0f} s ago")
        for name, age in bus.heard.items()
    ][:STATES_SHOWN]
    lines.append(f"  sent {bus.counters.get('sent', 0)}, taken {bus.counters.get('taken', 0)}")
    lines.append(f"  not sent or not taken: {counts({n: c for n, c in bus.counters.items() if n not in NOT_REFUSED})}")
    return lines


def server_lines(server: PrometheusServerStatus) -> list[str]:
    lines = [f"prometheus_server {server.name}"]
    for query in server.queries:
        if query.why_not:
            lines.append(f"  {query.metric}: fails: {query.why_not}")
        elif query.answered_at is None:
            lines.append(f"  {query.metric}: no answer yet")
        else:
            lines.append(
                f"  {query.metric}: {query.samples} samples of {query.networks} networks"
                f" at {moment(query.answered_at)}, within {query.seconds:.3f} s"
            )
    left_out = {name: count for name, count in server.counters.items() if name not in ("series", "failures")}
    return [*lines, f"  left out: {counts(left_out)}"]


def peer_lines(peer: PeerStatus, changing: bool) -> list[str]:
    """`changing`: one of the two ends has a second key."""
    following = f", next {peer.next_key_id}" if peer.next_key_id else ""
    lines = [f"peer {peer.name}  key {peer.key_id}{following}"]
    profile = peer.profile
    if peer.revoked and not peer.verified:
        return [*lines, "  its key is revoked: nothing of it is accepted"]
    lines += [f"  its key {key_id} is revoked: nothing is accepted by it" for key_id in peer.revoked]
    if not peer.verified:
        return [*lines, "  not verified here: verify = false, or the network's key is not on this host"]
    if profile is None:
        return [*lines, "  no profile received yet"]
    lines.append(
        f"  epoch {profile.epoch}, {profile.age:.0f} s ago, overall {level(profile.overall)}, "
        f"glance load {level(profile.glance.load)} threat {level(profile.glance.threat)}, {profile.nodes} node(s)"
    )
    lines.append(f"  {levels(profile.levels)}")
    if changing:
        lines.append(f"  signed by its key {peer.signed_by}, made for our key {peer.made_for}")
    if profile.affected:
        more = profile.affected_count - len(profile.affected)
        lines.append(f"  affected: {', '.join(profile.affected)}{f' and {more} more' if more else ''}")
    return lines


def traffic_lines(traffic: PeerTraffic) -> list[str]:
    last = f", the last at {moment(traffic.accepted_at)}" if traffic.accepted_at is not None else ""
    carriers = f" by {', '.join(traffic.carriers)}" if traffic.carriers and traffic.accepted else ""
    accepted = f"from {traffic.name}: accepted {traffic.accepted}{carriers}{last}"
    lines = [f"{accepted}; {refused(traffic)}".removesuffix("; ")]
    if traffic.let_in:
        lines.append(f"  {traffic.let_in} of them let in, which strict treatments would refuse")
    if clock_is_wrong(traffic):
        lines.append(f"  {clock(traffic)}")
    if traffic.unstamped:
        lines.append(f"  to {traffic.name} without a scent: {counts(traffic.unstamped)}")
    return lines


def refused(traffic: PeerTraffic) -> str:
    parts = [f"rejected: {counts(traffic.rejected)}"] if traffic.rejected else []
    parts += [f"without a scent: {counts(traffic.absent)}"] if traffic.absent else []
    return "; ".join(parts)


CLOCK_MARGIN = 2.0  # seconds that its clock may be ahead before we say so; the other way the newest epoch is some old


def clock_is_wrong(traffic: PeerTraffic) -> bool:
    return traffic.clock_offset is not None and (traffic.clock_refused or traffic.clock_offset < -CLOCK_MARGIN)


def clock(traffic: PeerTraffic) -> str:
    """What its epochs say of its clock and ours."""
    offset = traffic.clock_offset or 0.0
    wrong = f"{abs(offset):.0f} s {'ahead of' if offset < 0 else 'behind'} ours"
    return f"its clock seems to be {wrong}{', by packets that nobody has verified' if traffic.clock_refused else ''}"


def stranger_lines(strangers: PeerTraffic) -> list[str]:
    """What is no peer's."""
    said = [f"from strangers: {refused(strangers)}"] if strangers.rejected or strangers.absent else []
    return said + ([f"to strangers without a scent: {counts(strangers.unstamped)}"] if strangers.unstamped else [])


def omitted(rest: Omitted) -> list[str]:
    """The counts of what the document omits; `scentd status --all` shows everything."""
    parts = [
        f"{rest.networks} networks ({rest.issued} epochs issued)" if rest.networks else "",
        f"{rest.peers} peers ({rest.peers_without_profile} without a profile)" if rest.peers else "",
        f"their packets: accepted {rest.traffic.accepted}, {refused(rest.traffic)}" if rest.traffic else "",
        f"resources: {counts(rest.resources)}" if rest.resources else "",
        f"{rest.policies} policies" if rest.policies else "",
    ]
    left = [part for part in parts if part]
    return [f"not shown (--all shows them): {', '.join(left)}"] if left else []


def allocation(data: AllocationStatus) -> list[str]:
    lines = ["dry run: policies only say what they would do"] if data.dry_run else []
    if data.held:
        lines.append(f"held: {', '.join(data.held).replace('*', 'everything')}; scentd resume goes on")
    lines += [
        f"{r.kind} {r.resource} of {r.peer}: {r.text}{f', not in effect: {r.why_not}' if r.why_not else ''}"
        for r in data.resources
    ]
    lines += [
        f"released by hand: {r.senders} of {r.peer}, until {moment(r.until)}; policy {r.policy} does not renew it"
        for r in data.releases
    ]
    for policy in data.policies:
        fired = f", fired {moment(policy.fired_at)}" if policy.fired_at else ""
        lines.append(f"policy {policy.policy}: {counts(policy.outcomes)}{fired}")
    for delay in data.delays:
        if delay.count:
            name = delay.name.replace("_", " accepted -> ")
            lines.append(f"{name}: {delay.mean * 1000:.1f} ms on average, {delay.largest * 1000:.1f} ms at most")
    return lines


def offload(data: OffloadStatus) -> str:
    unserved = [f"unserved: {what}" for what in data.bypasses]
    if data.why_not:
        return "\n".join([f"no offload: {data.why_not}", *unserved])
    interfaces = f"stamps on {', '.join(data.egress) or '-'}, verifies on {', '.join(data.ingress) or '-'}"
    bridged = f", serves bridges' ports {', '.join(data.ports)}" if data.ports else ""
    return "\n".join([f"offload by {data.mechanism or '-'}: {interfaces}{bridged}", *unserved])


def guard(data: GuardStatus) -> str:
    if not data.connected:
        return "no guard: a restart loses packets, and closed is open while our rules are not there"
    kept = f"closed, {data.dropped} unverified packets dropped" if data.closed else "nothing is kept closed"
    excepted = f", {data.excepted} by exception" if data.excepted else ""
    waited = f"; packets of ended daemons: {data.waiting} wait, {data.released} went on, {data.given_up} given up"
    return f"guard: {kept}{excepted}{waited if data.waiting or data.released or data.given_up else ''}"


def explanation(data: Explanation) -> str:
    lines = [f"peer {data.peer}"]
    lines += [f"  {p.policy}: {p.outcome} {p.detail}  {p.reason}".rstrip() for p in data.policies]
    lines.append("decisions, newest first:" if data.decisions else "no decisions yet")
    for d in data.decisions:
        change = f"{d.before or '-'} -> {d.after or '-'}"
        lines.append(f"  {moment(d.at)} {d.policy or '-'} {d.action} {d.target} {change} (epoch {d.epoch}: {d.reason})")
    became = [(a.at, f"{a.resource} {a.failure or f'{a.amount:g} after {a.seconds:.2f} s'}") for a in data.applied]
    became += [(e.at, f"{e.policy}: {e.metric} {e.trend}, {e.before:.2f} -> {e.after:.2f}") for e in data.effects]
    if became:
        lines.append("what became of it, newest first:")
        lines += [f"  {moment(at)} {text}" for at, text in sorted(became, reverse=True)]
    return "\n".join(lines)


def event(data: dict) -> str:
    rest = " ".join(f"{k}={v}" for k, v in data.items() if k not in ("at", "event", "schema"))
    return f"{moment(data['at']) if 'at' in data else '-'} {data['event']} {rest}"


def scent(data: dict) -> str:
    return "  ".join(f"{key} {value}" for key, value in data.items() if key != "schema")


def moment(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def level(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def levels(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.2f}" for name, value in values.items()) or "no levels"


def counts(values: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in values.items() if count) or "none"
