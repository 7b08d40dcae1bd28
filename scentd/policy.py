"""The [[policy]] section: when to act, and what to do."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from scentd.schema import Name, Table
from scentd.units import Bits, Seconds


class Quarantine(Table, tag_field="kind", tag="quarantine"):
    """Drop all packets from the affected nodes or the whole network for a time (nftables set)."""

    target: Literal["node", "network"] = "node"
    timeout: Seconds = 60.0


class Bandwidth(Table, tag_field="kind", tag="bandwidth"):
    """Set the rate of the network's HTB class on an interface, in steps."""

    interface: str
    step: Bits  # largest change at once; negative narrows
    floor: Bits
    ceiling: Bits
    start: Bits | None = None  # before any policy fired; default: floor


class Command(Table, tag_field="kind", tag="command"):
    """Run a program (no shell) with the decision as JSON on its standard input."""

    argv: Annotated[list[str], Meta(min_length=1)]
    timeout: Seconds = 10.0
    user: str = "nobody"


class Webhook(Table, tag_field="kind", tag="webhook"):
    """POST the decision as JSON."""

    url: str
    timeout: Seconds = 5.0


Do = Quarantine | Bandwidth | Command | Webhook


class Policy(Table):
    name: Name
    when: str  # CEL over the view: cpu > 0.8 && has("region=eu-west")
    do: Do
    network: str = "*"  # a peer's name, or * for all
    hold: Seconds = msgspec.field(name="for", default=0.0)  # true for so long before it fires
    cooldown: Seconds = 0.0  # pause after it fired for a network
    matches: Annotated[int, Meta(ge=1, le=16)] = 1  # true in so many ...
    profiles: Annotated[int, Meta(ge=1, le=16)] = 1  # ... of the last so many profiles

    def mistakes(self, path: str) -> list[str]:
        problems = []
        if self.matches > self.profiles:
            problems.append(f"{path}.matches: is more than {path}.profiles")
        if isinstance(self.do, Bandwidth) and self.do.floor > self.do.ceiling:
            problems.append(f"{path}.do.floor: is above {path}.do.ceiling")
        return problems
