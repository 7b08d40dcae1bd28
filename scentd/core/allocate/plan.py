"""What the host should have, from firings. Pure.

    plan(desired, firings, now) -> Plan: the next Desired, Decisions for the log, Oneshots to carry out

Every change of Desired is a Decision. What a kind of action does with a firing is in its file
(core/allocate/actions).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scentd.config.policy import Policy
from scentd.config.schema import kind_of
from scentd.core.allocate.actions import ACTIONS
from scentd.model import Decision, Desired, Firing, Oneshot


@dataclass(frozen=True, slots=True)
class Plan:
    desired: Desired
    decisions: tuple[Decision, ...] = ()
    oneshots: tuple[Oneshot, ...] = ()


def plan(desired: Desired, firings: Iterable[Firing], now: float) -> Plan:
    """Fold the firings into the desired state, then release what has served its time.

    In this order, so that a quarantine that is renewed at its last moment has no gap.
    """
    kinds = {kind: dict(desired.of(kind)) for kind in ACTIONS}
    decisions: list[Decision] = []
    oneshots: list[Oneshot] = []
    for firing in firings:
        kind = kind_of(firing.policy.do)
        decided, once = ACTIONS[kind].fold(firing.policy.do, kinds[kind], firing)
        decisions += decided
        oneshots += once
    for kind, action in ACTIONS.items():
        decisions += action.release(kinds[kind], now)
    return Plan(made_of(kinds), tuple(decisions), tuple(oneshots))


def reload(desired: Desired, policies: Sequence[Policy], peers: Collection[str], now: float) -> Plan:
    """The desired state under these policies, at the start (from Desired()) and after a reload.

    What no policy speaks of any more is released.
    """
    kinds: dict[str, Mapping[Any, Any]] = {}
    decisions: list[Decision] = []
    for kind, action in ACTIONS.items():
        own = [p for p in policies if kind_of(p.do) == kind]
        kinds[kind], decided = action.reload(desired.of(kind), own, peers, now)
        decisions += decided
    return Plan(made_of(kinds), tuple(decisions))


def made_of(kinds: Mapping[str, Mapping[Any, Any]]) -> Desired:
    return Desired({kind: resources for kind, resources in kinds.items() if resources})
