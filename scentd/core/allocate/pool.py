"""One budget, and what policies ask of it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from scentd.config.budget import Budget
from scentd.config.resource import Resource
from scentd.core.allocate.entry import Key
from scentd.core.allocate.share import Demand, share


class Pool:
    """A budget, and what is asked of it."""

    def __init__(self, budget: Budget, members: Sequence[Key], whole: bool) -> None:
        self.budget, self.members, self.whole = budget, members, whole
        self.asked: dict[Key, float] = {}
        self.sum = 0.0
        self.changed: set[Key] = set()

    def ask(self, key: Key, amount: float) -> None:
        self.sum += amount - self.asked.get(key, 0.0)
        self.asked[key] = amount
        self.changed.add(key)

    @property
    def is_short(self) -> bool:
        return self.sum > self.budget.total

    def shares(self, resources: Mapping[str, Resource], has: Callable[[Key], float]) -> dict[Key, float]:
        """What each gets of a budget that is short. `has`: what it has now."""
        demands = {key: Demand(resources[key[0]].minimum, asked, has(key)) for key, asked in self.asked.items()}
        return share(demands, self.budget.total, self.whole)
