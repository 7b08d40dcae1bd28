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

    def take(self, view: View) -> list[Decision]:
        """What is decided because of this view, and of the time since the one before."""
        now = view.received_at
        due = [self._views[peer] for peer in self._decider.due(now) if peer in self._views and peer != view.peer]
        self._views[view.peer] = view
        made = plan(self._desired, [firing for seen in (*due, view) for firing in self._decider.decide(seen, now)])
        ended = release(made.desired, now)
        self._desired = ended.desired
        decisions = [*made.decisions, *ended.decisions, *self._amounts.settle(now)]
        for name, amounts in self._amounts.take_changes().items():
            self._amounts.give(name, amounts)
        return decisions
