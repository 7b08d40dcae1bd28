"""Bandwidth: changes the rate at which this host sends to a peer, in steps within bounds.

A resource is (peer, interface); its desired value is a rate in bits per second. Without `start` there is none before a
policy lowers it, from the ceiling: a policy makes nothing worse before it fires.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from scentd.config.policy import Policy
from scentd.config.schema import Table
from scentd.config.units import Bits
from scentd.core.allocate.actions.action import ActionKind, Resources, ResourceText, make_decision
from scentd.model import Decision, Firing, Oneshot

RATE_MIN = 8000.0  # bits per second; HTB knows no rate of zero
RateKey = tuple[str, str]  # peer, interface


class BandwidthAction(Table, tag_field="kind", tag="bandwidth"):
    """Set the rate of the peer's HTB class on an interface, in steps."""

    interface: str
    step: Bits  # change for each firing, at most; a negative step lowers the rate
    floor: Bits
    ceiling: Bits
    start: Bits | None = None  # the rate from the daemon's start on; default: none, until a policy lowers it

    def mistakes(self, path: str) -> list[str]:
        return (
            [f"{path}.floor: is above {path}.ceiling; lower the one or raise the other"]
            if self.floor > self.ceiling
            else []
        )


class BandwidthKind(ActionKind[BandwidthAction]):
    section = BandwidthAction
    level_triggered = True

    def fold(self, do: BandwidthAction, resources: Resources, firing: Firing) -> tuple[list[Decision], list[Oneshot]]:
        """One step from the current rate, within the policy's bounds. What has no rate cannot be raised."""
        key = firing.peer, do.interface
        old = resources.get(key, do.start)
        if old is None:
            if do.step >= 0:
                return [], []
            resources[key] = new = max(do.ceiling + do.step, do.floor, RATE_MIN)
            return [make_decision(firing, self.kind, do.interface, "unshaped", rate_text(new))], []
        new = max(min(max(old + do.step, do.floor), do.ceiling), RATE_MIN)
        resources[key] = new
        if new == old:
            return [], []
        return [make_decision(firing, self.kind, do.interface, rate_text(old), rate_text(new))], []

    def reload(
        self, resources: Mapping[RateKey, float], policies: Sequence[Policy], peers: Collection[str], now: float
    ) -> tuple[Resources, list[Decision]]:
        """A resource of a policy has its current rate, else the first `start` of its policies, if there is one; within
        the bounds of all its policies. A resource that no policy sets any more is freed.
        """
        decisions = []
        rates: dict[RateKey, float] = {}
        for key, using in by_resource(policies, peers).items():
            dos = [do for _, do in using]
            starts = [do.start for do in dos if do.start is not None]
            old = resources.get(key)
            rate = old if old is not None else next(iter(starts), None)
            if rate is None:
                continue
            rates[key] = max(min(max(rate, min(do.floor for do in dos)), max(do.ceiling for do in dos)), RATE_MIN)
            if rates[key] != old:
                before, reason = ("", "start") if old is None else (rate_text(old), "new bounds")
                after = rate_text(rates[key])
                decisions.append(Decision(now, key[0], using[0][0], 0, self.kind, key[1], before, after, reason))
        for key in resources.keys() - rates.keys():
            reason = "no policy sets it any more"
            decisions.append(Decision(now, key[0], "", 0, "release", key[1], rate_text(resources[key]), "free", reason))
        return rates, decisions

    def describe(self, resources: Mapping[RateKey, float]) -> list[ResourceText]:
        return [
            ResourceText(interface, peer, rate_text(rate), rate, "bit/s")
            for (peer, interface), rate in resources.items()
        ]


def never_used(policies: Sequence[Policy]) -> list[str]:
    """The policies that only raise a rate which nothing ever sets."""
    own = [policy for policy in policies if isinstance(policy.do, BandwidthAction)]
    using = by_resource(own, {policy.peer for policy in own}).values()
    is_set = [found for found in using if any(do.start is not None or do.step < 0 for _, do in found)]
    useful = {name for found in is_set for name, _ in found}
    return [policy.name for policy in own if policy.name not in useful]


def by_resource(policies: Sequence[Policy], peers: Collection[str]) -> dict[RateKey, list[tuple[str, BandwidthAction]]]:
    """The policies of each resource, by name, with their actions."""
    using: dict[RateKey, list[tuple[str, BandwidthAction]]] = {}
    for policy in policies:
        do = policy.do
        assert isinstance(do, BandwidthAction)  # the planner gives each kind its own policies
        for peer in peers if policy.peer == "*" else [policy.peer]:
            using.setdefault((peer, do.interface), []).append((policy.name, do))
    return using


def rate_text(rate: float) -> str:
    """The rate as tc and the configuration write it: 12.5mbit."""
    for unit, scale in (("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3)):
        if rate >= scale:
            return f"{rate / scale:.6g}{unit}"
    return f"{rate:.6g}bit"
