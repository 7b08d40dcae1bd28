"""Whether a change helped: compares a policy's metrics before it with those some profiles after it. Pure."""

from __future__ import annotations

from typing import Literal, NamedTuple

from scentd.model import Effect, Firing, View
from scentd.wire import layout

INTERVALS = 3  # so many profiles after the change its effect is judged
STEADY = 0.05  # a level that moved less than this did not change
PEERS_MAX = 4096  # with changes whose effect is awaited
METRICS = frozenset(layout.METRICS.values()) | {"overall", "load"}


class Change(NamedTuple):
    """A change whose effect is awaited."""

    policy: str
    values: dict[str, float]  # the metrics of the policy's expression when it fired
    applied_epoch: int  # of the newest profile when it was applied; 0: it was not yet


class Effects:
    """One change is awaited for each peer and resource; a newer one replaces it."""

    def __init__(self) -> None:
        self._by_peer: dict[str, dict[str, Change]] = {}

    def decided(self, resource: str, firing: Firing) -> None:
        values = {name: float(value) for name, value in firing.values.items() if name in METRICS and is_number(value)}
        changes = self._by_peer.setdefault(firing.peer, {})
        changes[resource] = Change(firing.policy.name, values, 0)
        if len(self._by_peer) > PEERS_MAX:
            del self._by_peer[next(iter(self._by_peer))]

    def applied(self, resource: str, peer: str, epoch: int) -> None:
        """The change is in effect. `epoch`: of the peer's newest profile."""
        changes = self._by_peer.get(peer, {})
        if resource in changes and not changes[resource].applied_epoch:
            changes[resource] = changes[resource]._replace(applied_epoch=epoch)

    def judge(self, view: View, now: float) -> list[Effect]:
        """The effects that this view shows."""
        changes = self._by_peer.get(view.peer)
        if changes is None:
            return []
        newest, effects = view.profile, []
        levels = {**newest.levels, "overall": newest.overall, "load": view.glance_load}
        for resource, change in list(changes.items()):
            if not change.applied_epoch or newest.epoch - change.applied_epoch < INTERVALS * newest.interval:
                continue
            del changes[resource]
            for metric, before in change.values.items():
                after = levels.get(metric)
                if after is not None:
                    course = trend(before, after)
                    effects.append(Effect(now, view.peer, change.policy, resource, metric, before, after, course))
        if not changes:
            del self._by_peer[view.peer]
        return effects


def trend(before: float, after: float) -> Literal["fell", "rose", "unchanged"]:
    if abs(after - before) < STEADY:
        return "unchanged"
    return "fell" if after < before else "rose"


def is_number(value: object) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)
