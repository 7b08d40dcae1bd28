"""What a kind of action is to the decider and the planner: one subclass a kind, in a file of its own. Pure.

A level-triggered kind keeps what it wants in the desired state: a mapping from the resource to what it should be,
which `fold` changes for a firing and `release` and `reload` take back. An edge kind wants something done once.
How either is carried out on a host is the business of the kind's file in act/.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from scentd.config.policy import Policy
from scentd.config.schema import Table
from scentd.model import Decision, Firing, Oneshot, View
from scentd.prefix import Prefix

S = TypeVar("S", bound=Table)
Resources = dict[Any, Any]  # of one kind: resource -> what it should be


@dataclass(frozen=True, slots=True)
class Told:
    """One resource of the desired state as people are told of it."""

    resource: str
    peer: str
    text: str  # what it should be
    amount: float | None = None  # in `unit`
    unit: str = ""
    until: float | None = None  # Unix time of its release, if that is known


class ActionKind(Generic[S]):
    """One kind. `section` is its part of the configuration, and its tag the kind's name."""

    section: type[S]
    level_triggered = False  # it is renewed for each epoch in which the policy stays true
    needs_targets = False  # without a target there is nothing to do

    @property
    def kind(self) -> str:
        return str(self.section.__struct_config__.tag)

    def targets(self, do: S, view: View) -> tuple[Prefix, ...]:
        """What the action would aim at now; nothing: the peer as such."""
        return ()

    def fold(self, do: S, resources: Resources, firing: Firing) -> tuple[list[Decision], list[Oneshot]]:
        """Take a firing into the desired state (`resources` is changed), or make what is to be done once of it."""
        return [], []

    def release(self, resources: Resources, now: float) -> list[Decision]:
        """Take back what has served its time."""
        return []

    def reload(
        self, resources: Mapping[Any, Any], policies: Sequence[Policy], peers: Collection[str], now: float
    ) -> tuple[Resources, list[Decision]]:
        """What should be under these policies, all of this kind, at the start and after a reload."""
        return {}, []

    def told(self, resources: Mapping[Any, Any]) -> list[Told]:
        """The desired state for people."""
        return []

    def barred(self, resources: Mapping[Any, Any]) -> dict[Prefix, float]:
        """Senders whose packets the packet path may drop at once, until a Unix time each."""
        return {}


class EdgeKind(ActionKind[S]):
    """Done once for each firing, never taken back."""

    def text(self, do: S) -> str:
        """What the decision log says of it; without secrets."""
        return self.kind

    def fold(self, do: S, resources: Resources, firing: Firing) -> tuple[list[Decision], list[Oneshot]]:
        decision = decided(firing, self.kind, firing.peer, "", self.text(do))
        return [decision], [Oneshot(do, decision, firing)]


def decided(firing: Firing, action: str, target: str, before: str, after: str) -> Decision:
    return Decision(
        firing.at, firing.peer, firing.policy.name, firing.epoch, action, target, before, after, firing.reason
    )
