"""Quarantine: what comes from the affected nodes of a peer, or from its whole network, is dropped for a time.

A resource is a prefix (an address as /32 or /128); what it should be is `Confined`.
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
from scentd.core.allocate.actions.action import ActionKind, Resources, Told, decided
from scentd.model import Decision, Firing, Oneshot, View
from scentd.prefix import Prefix, prefix_text

QUARANTINED_MAX = 65536  # prefixes at once; the actuator makes its sets of this size


class QuarantineAction(Table, tag_field="kind", tag="quarantine"):
    """Drop all packets from the affected nodes or the whole network for a time (nftables set)."""

    target: Literal["node", "network"] = "node"
    timeout: Seconds = 60.0


@dataclass(frozen=True, slots=True)
class Confined:
    """One quarantined prefix."""

    until: float
    timeout: float  # as the policy had it
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
        """Confine the targets from now on for the policy's timeout; never shortens what is there."""
        decisions = []
        until = firing.at + do.timeout
        for prefix in firing.targets:
            target, old = prefix_text(prefix), resources.get(prefix)
            before = f"quarantined until {clock(old.until)}" if old else "free"
            if prefix.prefixlen == 0:
                decisions.append(decided(firing, self.kind, target, before, "refused: this is every address"))
            elif old is None and len(resources) >= QUARANTINED_MAX:
                after = f"refused: {QUARANTINED_MAX} are quarantined already"
                decisions.append(decided(firing, self.kind, target, before, after))
                break
            elif old is None or until > old.until:
                resources[prefix] = Confined(until, do.timeout, firing.peer, firing.policy.name, firing.epoch)
                decisions.append(decided(firing, self.kind, target, before, f"quarantined until {clock(until)}"))
        return decisions, []

    def release(self, resources: Resources, now: float) -> list[Decision]:
        """Let go what has served its time. A clock that was set back does not make the time longer."""
        decisions = []
        for prefix, held in list(resources.items()):
            if held.until - now > held.timeout:
                resources[prefix] = replace(held, until=now + held.timeout)
            elif held.until <= now:
                del resources[prefix]
                decisions.append(released(prefix, held, now, f"{held.timeout:g} s since the policy last fired"))
        return decisions

    def reload(
        self, resources: Mapping[Prefix, Confined], policies: Sequence[Policy], peers: Collection[str], now: float
    ) -> tuple[Resources, list[Decision]]:
        """What no policy or peer speaks of any more is released."""
        names = {p.name for p in policies}
        kept = {p: held for p, held in resources.items() if held.policy in names and held.peer in peers}
        gone = [(p, held) for p, held in resources.items() if p not in kept]
        return kept, [released(p, held, now, "the policy or the peer was removed") for p, held in gone]

    def told(self, resources: Mapping[Prefix, Confined]) -> list[Told]:
        return [
            Told(prefix_text(p), held.peer, f"quarantined until {clock(held.until)}", until=held.until)
            for p, held in resources.items()
        ]

    def barred(self, resources: Mapping[Prefix, Confined]) -> dict[Prefix, float]:
        return {p: held.until for p, held in resources.items()}


def released(prefix: Prefix, held: Confined, now: float, reason: str) -> Decision:
    before = f"quarantined until {clock(held.until)}"
    return Decision(now, held.peer, held.policy, held.epoch, "release", prefix_text(prefix), before, "free", reason)


def seconds_left(resources: Mapping[Prefix, Confined], now: float) -> dict[Prefix, float]:
    return {p: held.until - now for p, held in resources.items() if held.until > now}


def clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
