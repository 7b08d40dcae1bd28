"""From firings to the desired state of the host. Pure.

    plan(desired, firings, now) -> Plan: the next Desired, Decisions for the log, Oneshots to carry out

Every change of Desired is a Decision. The file of each kind of action (core/allocate/actions) says how a firing changes
the kind's resources.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scentd.config.policy import Policy
from scentd.config.schema import kind_of
from scentd.core.allocate.actions import ACTIONS
from scentd.core.allocate.actions.action import Peers
from scentd.model import Decision, Desired, Firing, Oneshot


@dataclass(frozen=True, slots=True)
class Plan:
    desired: Desired
    decisions: tuple[Decision, ...] = ()
    oneshots: tuple[Oneshot, ...] = ()


def plan(desired: Desired, firings: Iterable[Firing], now: float) -> Plan:
    """Fold the firings into the desired state, then release the resources whose time is over.

    In this order a quarantine that is renewed at its last moment has no gap.
    """
    kinds = {kind: dict(desired.of(kind)) for kind in ACTIONS}
    decisions: list[Decision] = []
    oneshots: list[Oneshot] = []
    for firing in firings:
        kind = kind_of(firing.policy.do)
        new_decisions, new_oneshots = ACTIONS[kind].fold(firing.policy.do, kinds[kind], firing)
        decisions += new_decisions
        oneshots += new_oneshots
    for kind, action in ACTIONS.items():
        decisions += action.release(kinds[kind], now)
    return Plan(desired_state(kinds), tuple(decisions), tuple(oneshots))


def reload(desired: Desired, policies: Sequence[Policy], peers: Peers, now: float) -> Plan:
    """The desired state under these policies, at the start (from Desired()) and after a reload.

    Resources of policies that are no longer configured are released.
    """
    kinds: dict[str, Mapping[Any, Any]] = {}
    decisions: list[Decision] = []
    for kind, action in ACTIONS.items():
        own = [p for p in policies if kind_of(p.do) == kind]
        kinds[kind], new_decisions = action.reload(desired.of(kind), own, peers, now)
        decisions += new_decisions
    return Plan(desired_state(kinds), tuple(decisions))


def desired_state(kinds: Mapping[str, Mapping[Any, Any]]) -> Desired:
    return Desired({kind: resources for kind, resources in kinds.items() if resources})
