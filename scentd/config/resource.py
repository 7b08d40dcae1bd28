"""The base of the [[resource]] sections: what can be given to a peer, and within which bounds.

Each kind of resource has its section beside its back end, in act/resources.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

from scentd.config.schema import Name, Table, suggestion
from scentd.config.units import Seconds


class Resource(Table, kw_only=True):
    """What every kind has. Amounts are numbers in the kind's unit: replicas, bits per second, 0 or 1.

    `minimum`, `maximum`, `normal` and `step` are in the section of each kind's own type of number; a kind with another
    unit than a plain number redefines them (`maximum: Bits`).
    """

    whole: ClassVar[bool] = True  # amounts are whole numbers; expressions are rounded up
    unit: ClassVar[str] = ""  # for people: "replicas", "bit/s"
    stricter: ClassVar[Literal["less", "more"]] = "less"  # which of two amounts is the safer one
    restricts: ClassVar[bool] = False  # an amount may cut a peer off from what it would have without scentd

    name: Name
    peer: str = "*"  # whom it serves: a peer's name, or * for each peer an amount of its own
    minimum: float = 0.0  # no policy goes below; a fallback does not either
    maximum: float  # no policy goes above
    normal: float | None = None  # the amount before any policy asks, and after `timeout`; default: the minimum
    step: float | None = None  # how much one change may add or take away; default: any amount
    provide: Seconds = 0.0  # how long it takes to add some; so long after an addition nothing is taken back
    take_back: Seconds = 0.0  # how long it takes to take some back; so long nothing more is taken back
    protected: bool = False  # policies add and never take back
    drift: Literal["correct", "report"] = "correct"  # an amount that somebody else has changed
    on_exit: Literal["keep", "give-back"] = "keep"  # when scentd stops: leave it, or bring it to `normal`
    fallback: float | None = None  # the amount when the peer has been silent for `fallback_after`; default: hold
    fallback_after: Seconds = 600.0
    host: str = ""  # the host of the fleet that has it; default: this one

    @classmethod
    def parse_amount(cls, text: str) -> float:
        """An amount as the configuration writes it. Raises ValueError if `text` is none (it may be an expression)."""
        return float(text)

    @classmethod
    def amount_text(cls, amount: float) -> str:
        """The amount for people, with its unit."""
        return f"{amount:g} {cls.unit}".rstrip()

    @property
    def usual(self) -> float:
        """The amount before any policy asks."""
        return self.minimum if self.normal is None else self.normal

    def regions(self) -> Sequence[str]:
        """The regions of which its back end wants to know whether they are slow for a peer."""
        return ()

    def needs_peer_in(self) -> str:
        """The name of a setting that must contain {peer} if the resource serves more than one peer; "" for none."""
        return ""

    def mistakes(self, path: str) -> list[str]:
        problems = []
        if not 0 <= self.minimum <= self.maximum < math.inf:
            problems.append(f"{path}.minimum: is below 0 or above {path}.maximum; write 0 <= minimum <= maximum")
        for field in ("normal", "fallback"):
            value = getattr(self, field)
            if value is not None and not self.minimum <= value <= self.maximum:
                problems.append(f"{path}.{field}: is not between {path}.minimum and {path}.maximum")
        if self.step is not None and not 0 < self.step < math.inf:
            problems.append(f"{path}.step: must be more than 0; leave it out for changes of any size")
        if self.whole:
            problems += [
                f"{path}.{field}: {value:g} is no whole number"
                for field in ("minimum", "maximum", "normal", "fallback", "step")
                if (value := getattr(self, field)) is not None and value % 1
            ]
        setting = self.needs_peer_in()
        if setting and self.peer == "*" and "{peer}" not in str(getattr(self, setting)):
            problems.append(f"{path}.{setting}: has no {{peer}}, so all peers would have one; write it, or {path}.peer")
        return problems


def check_resources(resources: list[Resource], peers: list[str]) -> list[str]:
    """Mistakes between the resources and the peers."""
    return [
        f"resource[{i}].peer: no peer is named {resource.peer!r}{suggestion(resource.peer, peers)}"
        for i, resource in enumerate(resources)
        if resource.peer not in ("*", *peers)
    ]
