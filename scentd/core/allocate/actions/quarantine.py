"""Quarantine: drops the packets of a peer's affected nodes, or of its whole network, for a time.

A resource is a prefix (an address as /32 or /128); its desired value is a `QuarantineEntry`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Literal

from scentd.config.policy import Policy
from scentd.config.schema import Table
from scentd.config.units import Seconds
from scentd.core.allocate.actions.action import ActionKind, Resources, ResourceText, make_decision
from scentd.model import Decision, Firing, Oneshot, View
from scentd.prefix import Prefix, prefix_text

QUARANTINED_MAX = 65536  # prefixes at once; the actuator makes its sets of this size


class QuarantineAction(Table, tag_field="kind", tag="quarantine"):
    """Drop all packets from the affected nodes or the whole network for a time (nftables set)."""

    target: Literal["node", "network"] = "node"
    timeout: Seconds = 60.0


@dataclass(frozen=True, slots=True)
class QuarantineEntry:
    """One quarantined prefix."""

    until: float
    timeout: float  # the policy's when it fired
    peer: str
    policy: str
    epoch: int


class QuarantineKind(ActionKind[QuarantineAction]):
    section = QuarantineAction
    level_triggered = True
    needs_targets = True

    def targets(self, do: QuarantineAction, view: View) -> tuple[Prefix, ...]:
        if do.target == "network":
            return view.prefixes
        return tuple(ip_network(a) for a in sorted(view.affected, key=lambda a: (a.version, a)))

    def fold(self, do: QuarantineAction, resources: Resources, firing: Firing) -> tuple[list[Decision], list[Oneshot]]:
        """Quarantine the targets from now on for the policy's timeout. A longer quarantine of a target stays."""
        decisions = []
        until = firing.at + do.timeout
        for prefix in firing.targets:
            target, old = prefix_text(prefix), resources.get(prefix)
            before = f"quarantined until {time_text(old.until)}" if old else "free"
            if prefix.prefixlen == 0:
                decisions.append(make_decision(firing, self.kind, target, before, "refused: this is every address"))
            elif old is None and len(resources) >= QUARANTINED_MAX:
                after = f"refused: {QUARANTINED_MAX} are quarantined already"
                decisions.append(make_decision(firing, self.kind, target, before, after))
                break
            elif old is None or until > old.until:
                resources[prefix] = QuarantineEntry(until, do.timeout, firing.peer, firing.policy.name, firing.epoch)
                decisions.append(
                    make_decision(firing, self.kind, target, before, f"quarantined until {time_text(until)}")
                )
        return decisions, []

    def release(self, resources: Resources, now: float) -> list[Decision]:
        """Release the prefixes whose time is over. A clock that was set back does not make a quarantine longer."""
        decisions = []
        for prefix, entry in list(resources.items()):
            if entry.until - now > entry.timeout:
                resources[prefix] = replace(entry, until=now + entry.timeout)
            elif entry.until <= now:
                del resources[prefix]
                decisions.append(
                    release_decision(prefix, entry, now, f"{entry.timeout:g} s since the policy last fired")
                )
        return decisions

    def reload(
        self,
        resources: Mapping[Prefix, QuarantineEntry],
        policies: Sequence[Policy],
        peers: Collection[str],
        now: float,
    ) -> tuple[Resources, list[Decision]]:
        """Release the prefixes whose policy or peer is no longer configured."""
        names = {p.name for p in policies}
        kept = {p: entry for p, entry in resources.items() if entry.policy in names and entry.peer in peers}
        gone = [(p, entry) for p, entry in resources.items() if p not in kept]
        return kept, [release_decision(p, entry, now, "the policy or the peer was removed") for p, entry in gone]

    def describe(self, resources: Mapping[Prefix, QuarantineEntry]) -> list[ResourceText]:
        return [
            ResourceText(prefix_text(p), entry.peer, f"quarantined until {time_text(entry.until)}", until=entry.until)
            for p, entry in resources.items()
        ]

    def barred_senders(self, resources: Mapping[Prefix, QuarantineEntry]) -> dict[Prefix, float]:
        return {p: entry.until for p, entry in resources.items()}


def release_decision(prefix: Prefix, entry: QuarantineEntry, now: float, reason: str) -> Decision:
    before = f"quarantined until {time_text(entry.until)}"
    return Decision(now, entry.peer, entry.policy, entry.epoch, "release", prefix_text(prefix), before, "free", reason)


def seconds_left(resources: Mapping[Prefix, QuarantineEntry], now: float) -> dict[Prefix, float]:
    return {p: entry.until - now for p, entry in resources.items() if entry.until > now}


def time_text(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
