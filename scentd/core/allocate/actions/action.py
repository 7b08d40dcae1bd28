"""The interface of a kind of action to the decider and the planner: one subclass a kind, in a file of its own. Pure.

The desired state of a level-triggered kind is a mapping from resources to values. `fold` changes the mapping for a
firing; `release` and `reload` remove resources from it. An edge kind makes a oneshot of each firing. The kind's file in
act/ carries either out on a host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from scentd.config.policy import Action, Policy
from scentd.config.resource import Resource
from scentd.model import Decision, Firing, Oneshot, Sender, View
from scentd.prefix import Prefix

S = TypeVar("S", bound=Action)
Resources = dict[Any, Any]  # of one kind: resource -> desired value
Peers = Mapping[str, tuple[Prefix, ...]]  # by name: those of its addresses that other peers have, too


@dataclass(frozen=True, slots=True)
class ResourceText:
    """One resource of the desired state, for people to read."""

    resource: str
    peer: str
    text: str  # the desired value
    amount: float | None = None  # the value as a number, in `unit`
    unit: str = ""
    until: float | None = None  # Unix time of its release, if it has one


@dataclass(frozen=True, slots=True)
class AmountRequest:
    """What an action asks of a resource: a number, or what an expression gives."""

    resource: Resource
    number: float = 0.0
    relative: bool = False  # the number is added to what there is
    expression: str = ""
    timeout: float | None = None  # seconds from the last firing; None: while the policy holds


class ActionKind(Generic[S]):
    """One kind. `section` is the type of its configuration; the tag of `section` is the kind's name."""

    section: type[S]
    level_triggered = False  # the action is renewed for each epoch in which the policy stays true
    needs_targets = False  # a policy does not fire without a target

    @property
    def kind(self) -> str:
        return str(self.section.__struct_config__.tag)

    def targets(self, do: S, view: View) -> tuple[Sender, ...]:
        """The senders at which the action would aim now. An empty tuple: the action aims at the peer as such."""
        return ()

    def request(self, do: S, resources: Mapping[str, Resource]) -> AmountRequest | None:
        """What the action asks of a [[resource]]; None: the kind asks for none, or it is not there."""
        return None

    def fold(self, do: S, resources: Resources, firing: Firing) -> tuple[list[Decision], list[Oneshot]]:
        """Fold a firing into the desired state, which changes `resources`, or make oneshots of it."""
        return [], []

    def release(self, resources: Resources, now: float) -> list[Decision]:
        """Remove the resources whose time is over."""
        return []

    def release_where(self, resources: Resources, why: Callable[[Sender, str], str], now: float) -> list[Decision]:
        """Remove the resources that cut senders off and for which `why(sender, peer)` gives a reason."""
        return []

    def reload(
        self, resources: Mapping[Any, Any], policies: Sequence[Policy], peers: Peers, now: float
    ) -> tuple[Resources, list[Decision]]:
        """The resources under these policies, all of this kind, at the start and after a reload."""
        return {}, []

    def dump(self, resources: Mapping[Any, Any]) -> dict[str, bytes]:
        """The desired state for a file: by a name of each resource."""
        return {}

    def load(self, rows: Mapping[str, bytes]) -> Resources:
        """What `dump` has made rows of. A row that cannot be read is left out."""
        return {}

    def describe(self, resources: Mapping[Any, Any]) -> list[ResourceText]:
        """The desired state, for people to read."""
        return []

    def barred_senders(self, resources: Mapping[Any, Any]) -> dict[Sender, float]:
        """The senders whose packets the packet path may drop at once, each with the Unix time of its release."""
        return {}


class EdgeKind(ActionKind[S]):
    """A kind whose actions are done once for each firing, and never undone."""

    def text(self, do: S) -> str:
        """The action in the history, without secrets."""
        return self.kind

    def fold(self, do: S, resources: Resources, firing: Firing) -> tuple[list[Decision], list[Oneshot]]:
        decision = make_decision(firing, self.kind, firing.peer, "", self.text(do))
        return [decision], [Oneshot(do, decision, firing)]


def make_decision(firing: Firing, action: str, target: str, before: str, after: str) -> Decision:
    return Decision(
        firing.at, firing.peer, firing.policy.name, firing.epoch, action, target, before, after, firing.reason
    )
