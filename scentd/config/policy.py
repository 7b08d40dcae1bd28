"""The [[policy]] section: when to act, and what to do. Each kind of action has its section in core/allocate/actions."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from scentd.config import expression
from scentd.config.schema import Name, Table, of_kind
from scentd.config.units import Seconds

Action = Annotated[Table, of_kind("action")]


class Policy(Table):
    name: Name
    when: str  # CEL over the view: cpu > 0.8 && has("region=eu-west")
    do: Action
    peer: str = "*"  # a peer's name, or * for all
    hold: Seconds = msgspec.field(name="for", default=0.0)  # `when` has to be true for so long before the policy fires
    cooldown: Seconds = 0.0  # pause after the policy fired for a peer
    matches: Annotated[int, Meta(ge=1, le=16)] = 1  # `when` has to be true on so many ...
    profiles: Annotated[int, Meta(ge=1, le=16)] = 1  # ... of the last so many profiles

    renamings = {"network": "peer"}

    def mistakes(self, path: str) -> list[str]:
        return (
            [f"{path}.matches: is more than {path}.profiles; lower the one or raise the other"]
            if self.matches > self.profiles
            else []
        )


def check_policies(policies: list[Policy], peers: list[str], private_metrics: set[str]) -> list[str]:
    """Check the policies' peers and expressions. `private_metrics`: the peers' names for private slots."""
    return [
        *expression.check_peers([p.peer for p in policies], peers),
        *expression.check([p.when for p in policies], private_metrics),
    ]
