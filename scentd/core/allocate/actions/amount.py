"""Amount: asks for an amount of a resource. What all policies ask of one resource becomes one amount in amounts.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from scentd.config import expression
from scentd.config.policy import Action
from scentd.config.resource import Resource
from scentd.config.schema import Name, suggestion
from scentd.config.units import Seconds
from scentd.core.allocate.actions.action import ActionKind, AmountRequest, Resources, make_decision
from scentd.model import Decision, Firing, Oneshot


class AmountAction(Action, tag_field="kind", tag="amount"):
    """Ask for an amount of a resource: `to` a number or the value of an expression, or `by` so much more or less."""

    resource: Name
    to: float | str | None = None  # 4, "20mbit", or CEL: "ceil(current * cpu / 0.7)"
    by: float | str | None = None  # 1, -1, "20mbit": from what there is
    timeout: Seconds | None = None  # so long after the policy last fired the wish ends; default: while the policy holds

    def variables(self) -> Sequence[str]:
        return expression.BOUNDS

    def asked_resource(self) -> str:
        return self.resource

    def mistakes(self, path: str) -> list[str]:
        if (self.to is None) == (self.by is None):
            return [f"{path}: write either `to` or `by`"]
        problems = []
        if self.timeout is not None and not 0 < self.timeout < math.inf:
            problems.append(f"{path}.timeout: must be more than 0; leave it out for as long as the policy holds")
        for field in ("to", "by"):
            value = getattr(self, field)
            if isinstance(value, float) and not math.isfinite(value):
                problems.append(f"{path}.{field}: is no finite number")
        return problems

    def check(self, peer: str, resources: Sequence[Resource], known: Sequence[str], path: str) -> list[str]:
        named = next((r for r in resources if r.name == self.resource), None)
        if named is None:
            names = [r.name for r in resources]
            way_out = suggestion(self.resource, names) if names else "; there is no [[resource]]"
            return [f"{path}.resource: no resource is named {self.resource!r}{way_out}"]
        if peer != "*" != named.peer != peer:
            return [f"{path}.resource: {self.resource} serves {named.peer} alone; write that peer, or none"]
        try:
            text = str(self.to) if amount_of(self, named) is None else ""
        except ValueError as error:
            return [f"{path}.by: {error}"]
        return [f"{path}.to: {mistake}" for mistake in expression.check_amount(text, known)] if text else []


class AmountKind(ActionKind[AmountAction]):
    section = AmountAction
    level_triggered = True

    def fold(self, do: AmountAction, resources: Resources, firing: Firing) -> tuple[list[Decision], list[Oneshot]]:
        """Only a policy on dry run has its decision here: amounts.py decides what becomes of a wish."""
        if not firing.policy.dry_run or firing.asked is None:
            return [], []
        return [make_decision(firing, self.kind, do.resource, "", f"{firing.asked:g}")], []

    def request(self, do: AmountAction, resources: Mapping[str, Resource]) -> AmountRequest | None:
        resource = resources.get(do.resource)
        if resource is None:
            return None
        number = amount_of(do, resource)
        if number is None:
            return AmountRequest(resource, expression=str(do.to), timeout=do.timeout)
        return AmountRequest(resource, number, do.by is not None, timeout=do.timeout)


def amount_of(do: AmountAction, resource: Resource) -> float | None:
    """The number that `to` or `by` is; None if `to` is an expression. Raises ValueError if `by` is no number."""
    value = do.to if do.by is None else do.by
    if not isinstance(value, str):
        return value
    try:
        return resource.parse_amount(value)
    except ValueError:
        if do.by is None:
            return None
        raise
