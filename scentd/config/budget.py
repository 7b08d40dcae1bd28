"""The [[budget]] section: how much there is of some resources for a group of peers together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scentd.config.resource import Resource
from scentd.config.schema import Name, Table, suggestion


class Budget(Table):
    """If the peers ask for more than `total`, each gets what it asks for up to one and the same share of it."""

    name: Name
    resources: list[Name]
    total: float  # in the unit of the resources
    peers: list[Name] = []  # default: all

    def mistakes(self, path: str) -> list[str]:
        return [] if 0 < self.total < math.inf else [f"{path}.total: must be more than 0"]


def check_budgets(budgets: Sequence[Budget], resources: Sequence[Resource], peers: Sequence[str]) -> list[str]:
    """Mistakes between budgets, resources and peers: names, units, and minimums that do not fit."""
    problems = []
    by_name = {r.name: r for r in resources}
    owners: dict[tuple[str, str], str] = {}
    for i, budget in enumerate(budgets):
        path = f"budget[{i}]"
        for name in budget.resources:
            if name not in by_name:
                problems.append(f"{path}.resources: no resource is named {name!r}{suggestion(name, list(by_name))}")
        problems += [
            f"{path}.peers: no peer is named {name!r}{suggestion(name, peers)}"
            for name in budget.peers
            if name not in peers
        ]
        found = [by_name[name] for name in budget.resources if name in by_name]
        if len({(r.unit, r.whole) for r in found}) > 1:
            problems.append(f"{path}.resources: have different units; make a budget for each unit")
        keys = [(r, p) for r in found for p in (budget.peers or peers) if r.peer in ("*", p)]
        least = sum(r.minimum for r, _ in keys)
        if least > budget.total:
            problems.append(f"{path}.total: is below the sum of the minimums ({least:g}); raise it, or lower those")
        for resource, peer in keys:
            other = owners.setdefault((resource.name, peer), budget.name)
            if other != budget.name:
                problems.append(f"{path}: {resource.name} of {peer} is in budget {other}, too; name it in one")
                break
    return problems
