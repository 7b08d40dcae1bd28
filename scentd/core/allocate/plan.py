"""From firings to the desired state of the host. Pure.

    plan(desired, firings) -> Plan: the next Desired, Decisions for the log, Oneshots to carry out
    release(desired, now) -> Plan: without the resources whose time is over

Every change of Desired is a Decision. The file of each kind of action (core/allocate/actions) says how a firing changes
the kind's resources. Amounts of resources are not here: what all policies wish of one is made one in amounts.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scentd.config.policy import Policy
from scentd.config.schema import kind_of
from scentd.core.allocate.actions import ACTIONS
from scentd.core.allocate.actions.action import Peers
from scentd.model import Decision, Desired, Firing, Oneshot, Sender

DRY_RUN = "dry-run "  # before the action of a decision that is not carried out


@dataclass(frozen=True, slots=True)
class Plan:
    desired: Desired
    decisions: tuple[Decision, ...] = ()
    oneshots: tuple[Oneshot, ...] = ()


def plan(desired: Desired, firings: Iterable[Firing]) -> Plan:
    """Fold the firings into the desired state. A policy on dry run changes nothing, and says once what it would do."""
    kinds: dict[str, dict[Any, Any]] = {}
    decisions: list[Decision] = []
    oneshots: list[Oneshot] = []
    for firing in firings:
        policy = firing.policy
        kind = kind_of(policy.do)
        if policy.dry_run:
            would, _ = ACTIONS[kind].fold(policy.do, dict(desired.of(kind)), firing)
            decisions += [replace(d, action=DRY_RUN + d.action) for d in would if not firing.repeated]
            continue
        resources = kinds.setdefault(kind, dict(desired.of(kind)))
        new_decisions, new_oneshots = ACTIONS[kind].fold(policy.do, resources, firing)
        decisions += new_decisions
        oneshots += new_oneshots
    return Plan(with_kinds(desired, kinds), tuple(decisions), tuple(oneshots))


def release(desired: Desired, now: float) -> Plan:
    """Remove the resources whose time is over."""
    kinds: dict[str, dict[Any, Any]] = {}
    decisions: list[Decision] = []
    for kind, resources in desired.kinds.items():
        kinds[kind] = dict(resources)
        decisions += ACTIONS[kind].release(kinds[kind], now)
    return Plan(with_kinds(desired, kinds), tuple(decisions))


def reload(desired: Desired, policies: Sequence[Policy], peers: Peers, now: float) -> Plan:
    """The desired state under these policies, at the start (from Desired()) and after a reload.

    Resources of policies that are no longer configured are released.
    """
    kinds: dict[str, dict[Any, Any]] = {}
    decisions: list[Decision] = []
    for kind, action in ACTIONS.items():
        own = [p for p in policies if kind_of(p.do) == kind]
        kinds[kind], new_decisions = action.reload(desired.of(kind), own, peers, now)
        decisions += new_decisions
    return Plan(with_kinds(Desired(), kinds), tuple(decisions))


def release_where(desired: Desired, why: Callable[[Sender, str], str], now: float) -> Plan:
    """Without the resources that cut senders off and for which `why(sender, peer)` gives a reason."""
    kinds = {kind: dict(resources) for kind, resources in desired.kinds.items()}
    decisions = [d for kind, resources in kinds.items() for d in ACTIONS[kind].release_where(resources, why, now)]
    return Plan(with_kinds(desired, kinds), tuple(decisions))


def with_kinds(desired: Desired, kinds: Mapping[str, Mapping[Any, Any]]) -> Desired:
    """The desired state with these kinds in the place of its own; itself if nothing differs."""
    changed = {kind: resources for kind, resources in kinds.items() if resources != desired.of(kind)}
    if not changed:
        return desired
    return Desired({kind: resources for kind, resources in {**desired.kinds, **changed}.items() if resources})
