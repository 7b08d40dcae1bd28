"""Bandwidth: the rate of what this host sends to a peer, changed in steps within bounds.

A resource is (peer, interface); what it should be is a rate in bits per second.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from scentd.config.policy import Policy
from scentd.config.schema import Table
from scentd.config.units import Bits
from scentd.core.allocate.actions.action import ActionKind, Resources, Told, decided
from scentd.model import Decision, Firing, Oneshot

RATE_MIN = 8000.0  # bits per second; HTB knows no rate of zero
RateKey = tuple[str, str]  # peer, interface


class BandwidthAction(Table, tag_field="kind", tag="bandwidth"):
    """Set the rate of the peer's HTB class on an interface, in steps."""

    interface: str
    step: Bits  # largest change at once; negative narrows
    floor: Bits
    ceiling: Bits
    start: Bits | None = None  # before any policy fired; default: floor

    def mistakes(self, path: str) -> list[str]:
        return [f"{path}.floor: is above {path}.ceiling"] if self.floor > self.ceiling else []


class BandwidthKind(ActionKind[BandwidthAction]):
    section = BandwidthAction
    level_triggered = True

    def fold(self, do: BandwidthAction, resources: Resources, firing: Firing) -> tuple[list[Decision], list[Oneshot]]:
        """One step from the current rate, within the policy's bounds."""
        key = firing.peer, do.interface
        old = resources.get(key, do.floor if do.start is None else do.start)
        new = max(min(max(old + do.step, do.floor), do.ceiling), RATE_MIN)
        resources[key] = new
        if new == old:
            return [], []
        return [decided(firing, self.kind, do.interface, bits(old), bits(new))], []

    def reload(
        self, resources: Mapping[RateKey, float], policies: Sequence[Policy], peers: Collection[str], now: float
    ) -> tuple[Resources, list[Decision]]:
        """Each peer that a policy names has a rate: the one it has, else the policy's `start`, else its floor,
        within the bounds of all its policies. What no policy sets any more is free.
        """
        decisions = []
        rates: dict[RateKey, float] = {}
        for key, using in by_resource(policies, peers).items():
            dos = [do for _, do in using]
            starts = [do.start for do in dos if do.start is not None]
            old = resources.get(key)
            rate = old if old is not None else starts[0] if starts else dos[0].floor
            rates[key] = max(min(max(rate, min(do.floor for do in dos)), max(do.ceiling for do in dos)), RATE_MIN)
            if rates[key] != old:
                before, reason = ("", "start") if old is None else (bits(old), "new bounds")
                after = bits(rates[key])
                decisions.append(Decision(now, key[0], using[0][0], 0, self.kind, key[1], before, after, reason))
        for key in resources.keys() - rates.keys():
            reason = "no policy sets it any more"
            decisions.append(Decision(now, key[0], "", 0, "release", key[1], bits(resources[key]), "free", reason))
        return rates, decisions

    def told(self, resources: Mapping[RateKey, float]) -> list[Told]:
        return [Told(interface, peer, bits(rate), rate, "bit/s") for (peer, interface), rate in resources.items()]


def by_resource(policies: Sequence[Policy], peers: Collection[str]) -> dict[RateKey, list[tuple[str, BandwidthAction]]]:
    """The policies of each resource, by name, with their actions."""
    using: dict[RateKey, list[tuple[str, BandwidthAction]]] = {}
    for policy in policies:
        do = policy.do
        assert isinstance(do, BandwidthAction)  # the planner gives each kind its own policies
        for peer in peers if policy.peer == "*" else [policy.peer]:
            using.setdefault((peer, do.interface), []).append((policy.name, do))
    return using


def bits(rate: float) -> str:
    """As tc writes it and the configuration reads it: 12.5mbit."""
    for unit, scale in (("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3)):
        if rate >= scale:
            return f"{rate / scale:.6g}{unit}"
    return f"{rate:.6g}bit"
