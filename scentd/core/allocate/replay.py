"""What policies would have decided on views that were recorded. Pure.

Amounts are taken for given at once: what a policy asks for is there when the next view comes. So a replay says what
would have been decided, and not how long it would have taken. Which nodes were seen is not recorded: a quarantine of
nodes finds none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from scentd.config.budget import Budget
from scentd.config.policy import Policy
from scentd.config.resource import Resource
from scentd.core.allocate.amounts import Amounts
from scentd.core.allocate.decide import Decider
from scentd.core.allocate.plan import plan, release
from scentd.model import Decision, Desired, View

STEP = 0.01  # seconds between two looks at what is due, at least


class Replay:
    """One set of policies over recorded views."""

    def __init__(
        self, policies: Sequence[Policy], resources: Sequence[Resource], budgets: Sequence[Budget], peers: Iterable[str]
    ) -> None:
        self._amounts = Amounts(resources, budgets, list(peers))
        for resource in resources:
            self._amounts.observe(resource.name, {}, (), 0.0)
        self._decider = Decider(policies, self._amounts)
        self._desired = Desired()
        self._views: dict[str, View] = {}
        self._now = 0.0

    def take(self, view: View) -> list[Decision]:
        """What is decided in the time since the view before, and because of this one."""
        decisions = self._pass(view.received_at)
        self._views[view.peer] = view
        return decisions + self._look_at([view], view.received_at)

    def _pass(self, until: float) -> list[Decision]:
        """What time alone decides until then: `for` and cooldowns that end, views that become stale."""
        decisions: list[Decision] = []
        while (at := max(self._decider.next_due(), self._now + STEP)) < until:
            due = [self._views[peer] for peer in self._decider.due(at) if peer in self._views]
            decisions += self._look_at(due, at)
        return decisions

    def _look_at(self, views: Iterable[View], now: float) -> list[Decision]:
        self._now = now
        made = plan(self._desired, [firing for view in views for firing in self._decider.decide(view, now)])
        ended = release(made.desired, now)
        self._desired = ended.desired
        decisions = [*made.decisions, *ended.decisions, *self._amounts.settle(now)]
        for name, amounts in self._amounts.take_changes().items():
            self._amounts.give(name, amounts)
        return decisions
