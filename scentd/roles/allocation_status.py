"""The allocator's part of the status document, and the answer to `scentd explain`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from scentd.config.schema import kind_of
from scentd.config.sections import Config
from scentd.control.status import (
    AllocationStatus,
    AppliedAt,
    Explanation,
    PolicyAssessment,
    PolicyStatus,
    ReleaseStatus,
    ResourceStatus,
    count_names,
    limit_list,
)
from scentd.core.allocate.actions import ACTIONS
from scentd.core.allocate.entry import same
from scentd.model import View
from scentd.roles.allocator import AllocatorRole

WhyNot = Callable[[str, str], str]  # resource, peer


def explanation(allocator: AllocatorRole, peer: str, view: View | None, limit: int) -> Explanation:
    """The outcome of each policy for a peer, and the decisions about it, newest first."""
    assessments = allocator.assess(view) if view is not None else []
    account = allocator.account(peer, limit)
    return Explanation(
        peer=peer,
        policies=[
            PolicyAssessment(policy=a.policy, outcome=a.outcome, detail=a.detail, reason=a.reason) for a in assessments
        ],
        decisions=account.decisions,
        applied=[AppliedAt(at=at, **asdict(applied)) for at, applied in account.applied],
        effects=account.effects,
    )


def allocation_status(
    allocator: AllocatorRole, config: Config, why_not: WhyNot, limit: int
) -> tuple[AllocationStatus, dict[str, int], int]:
    """Return the document's part, the number of resources that it omits by kind, and of policies that it omits."""
    everything = kept_on_host(allocator) + amounts(allocator, config, why_not)
    resources, rest = limit_list(everything, limit, lambda r: (bool(r.why_not), r.until or 0.0))
    standings, more = limit_list(allocator.standings(), limit, lambda s: s.fired_at or 0.0)
    status = AllocationStatus(
        resources=resources,
        decisions=dict(allocator.decisions),
        policies=[
            PolicyStatus(policy=s.policy, outcomes=s.outcomes, true_now=s.true_now, fired_at=s.fired_at)
            for s in standings
        ],
        delays=allocator.delays.status(),
        releases=[
            ReleaseStatus(policy=r.policy, peer=r.peer, senders=str(r.prefix or "all"), until=r.until)
            for r in allocator.releases()
        ],
        held=sorted(allocator.amounts.held),
        dry_run=config.allocator.dry_run,
    )
    return status, count_names(r.kind for r in rest), len(more)


def kept_on_host(allocator: AllocatorRole) -> list[ResourceStatus]:
    """What actions such as quarantine keep on this host."""
    return [
        ResourceStatus(
            kind=kind,
            resource=t.resource,
            peer=t.peer,
            text=t.text,
            amount=t.amount,
            unit=t.unit,
            until=t.until,
            why_not=allocator.why_not(kind, t.resource),
        )
        for kind, action in ACTIONS.items()
        for t in action.describe(allocator.desired.of(kind))
    ]


def amounts(allocator: AllocatorRole, config: Config, why_not: WhyNot) -> list[ResourceStatus]:
    """The amounts of resources: what is wanted, what there is, and why they differ."""
    kinds = {r.name: kind_of(r) for r in config.resource}
    found = []
    for (resource, peer), entry in allocator.amounts.entries():
        section = allocator.amounts.resources[resource]
        wanted, there = entry.desired, entry.observed
        text = section.amount_text(wanted) if wanted is not None else "not known yet"
        if wanted is not None and there is not None and not same(wanted, there):
            text += f" ({section.amount_text(there)} now)"
        until = min((w.until for w in entry.wishes.values()), default=float("inf"))
        found.append(
            ResourceStatus(
                kind=kinds[resource],
                resource=resource,
                peer=peer,
                text=text,
                amount=wanted,
                observed=there,
                unit=section.unit,
                until=until if entry.timed and until < float("inf") else None,
                why_not=why_not(resource, peer),
            )
        )
    return found
