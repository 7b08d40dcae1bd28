"""The [[policy]] section: when to act, and what to do. Each kind of action has its section in core/allocate/actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from scentd.config import expression
from scentd.config.resource import Resource
from scentd.config.schema import Name, Table, of_kind
from scentd.config.units import Seconds

Purpose = Literal["safety", "growth", "saving"]


class Action(Table):
    """Base of the sections of actions: what the rules between sections ask of any kind."""

    def variables(self) -> Sequence[str]:
        """Variables of the policy's `when` besides those of every policy."""
        return ()

    def asked_resource(self) -> str:
        """The name of the [[resource]] for which it asks; "" for none."""
        return ""

    def check(self, peer: str, resources: Sequence[Resource], known: Sequence[str], path: str) -> list[str]:
        """Mistakes between this action of a policy for `peer`, and the resources. `known`: all variables."""
        return []


class Policy(Table):
    name: Name
    when: str  # CEL over the view: cpu > 0.8 && has("region=eu-west")
    do: Annotated[Action, of_kind("action")]
    peer: str = "*"  # a peer's name, or * for all
    hold: Seconds = msgspec.field(name="for", default=0.0)  # `when` has to be true for so long before the policy fires
    cooldown: Seconds = 0.0  # pause after the policy fired for a peer
    purpose: Purpose | None = None  # safety wins over growth, growth over saving; default: by the amount
    dry_run: bool = False  # log what it would do, and do nothing
    matches: Annotated[int, Meta(ge=1, le=16)] = 1  # `when` has to be true on so many ...
    profiles: Annotated[int, Meta(ge=1, le=16)] = 1  # ... of the last so many profiles

    renamings = {"network": "peer"}

    def mistakes(self, path: str) -> list[str]:
        return (
            [f"{path}.matches: is more than {path}.profiles; lower the one or raise the other"]
            if self.matches > self.profiles
            else []
        )


def check_policies(
    policies: list[Policy], peers: list[str], private_metrics: set[str], resources: Sequence[Resource]
) -> list[str]:
    """Check the policies' peers, expressions and actions. `private_metrics`: the peers' names for private slots."""
    problems = expression.check_peers([p.peer for p in policies], peers)
    for i, policy in enumerate(policies):
        known = [*expression.known_variables(private_metrics), *policy.do.variables()]
        problems += [f"policy[{i}].when: {mistake}" for mistake in expression.check_when(policy.when, known)]
        problems += policy.do.check(policy.peer, resources, known, f"policy[{i}].do")
    return problems
