"""What a host says of the resources that it gives: what there is, what it was told, what it has carried out. Pure.

One round is all of it at one moment, in as many parts as it needs; an allocator goes by whole rounds. What was carried
out (Applied) is in the first part, and counts at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from scentd.core.allocate.entry import Key
from scentd.core.fleet.desired import Owner, Taken
from scentd.core.fleet.order import Serial
from scentd.model import Applied, Observed, PriorWish

PART_ROWS = 1500  # of 250 bytes each at most
APPLIED_MAX = 600  # of 600 bytes each at most
PARTS_MAX = 1000


class Row(Struct, frozen=True, array_like=True):
    """One resource and peer."""

    resource: str
    peer: str
    seen: float  # the amount that there is
    drifted: bool
    wanted: PriorWish | None  # what the host was told, if it was; without `until` if that is not a wish's


class ProvidedPart(Struct, frozen=True, array_like=True):
    serial: Serial
    at: float  # Unix time
    round: int
    index: int
    count: Annotated[int, Meta(ge=1, le=PARTS_MAX)]
    owner: Owner | None  # of the highest term that the host has had from the receiver's name
    looked: tuple[
        str, ...
    ]  # resources that the host could look at; of the others the rows say nothing of what there is
    rows: tuple[Row, ...]
    applied: tuple[Applied, ...]


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(ProvidedPart).decode


def wanted(taken: Taken | None) -> PriorWish | None:
    """What an allocator that takes over begins with. What has ended is wanted no more."""
    if taken is None or taken.ended:
        return None
    said = taken.said
    return PriorWish(said.amount, said.end if said.timed else math.inf, said.policy, said.since)


def rows_of(observed: Iterable[Observed], taken: Mapping[Key, Taken]) -> Iterator[Row]:
    """Of all peers that have something, or should."""
    told: dict[str, set[str]] = {}
    for resource, peer in taken:
        told.setdefault(resource, set()).add(peer)
    for seen in observed:
        for peer in sorted({*seen.amounts, *told.get(seen.resource, ())}):
            yield Row(
                seen.resource,
                peer,
                seen.amounts.get(peer, 0.0),
                peer in seen.drifted,
                wanted(taken.get((seen.resource, peer))),
            )


def parts(every: Iterable[Row]) -> list[tuple[Row, ...]]:
    """As few as they fit into; one at least."""
    whole = tuple(every)
    return [whole[i : i + PART_ROWS] for i in range(0, max(1, len(whole)), PART_ROWS)]


def is_sound(row: Row) -> bool:
    """Whether its numbers can be amounts and times. NaN is none of them."""
    said = row.wanted
    right = said is None or (0.0 <= said.amount < math.inf and said.until > 0.0 and said.since < math.inf)
    return 0.0 <= row.seen < math.inf and right


@dataclass(slots=True)
class Rounds:
    """The parts of one host's newest round."""

    number: int = -1
    parts: dict[int, ProvidedPart] = field(default_factory=dict)

    def add(self, part: ProvidedPart) -> list[ProvidedPart]:
        """All parts, if this one completes its round."""
        if part.round != self.number:
            self.number, self.parts = part.round, {}
        self.parts[part.index] = part
        whole = len(self.parts) == part.count and all(p.count == part.count for p in self.parts.values())
        return [self.parts[i] for i in sorted(self.parts)] if whole else []


def observations(round: Iterable[ProvidedPart], names: Iterable[str]) -> Iterator[Observed]:
    """What a whole round says of these resources."""
    whole = list(round)
    looked = {name for part in whole for name in part.looked}
    by_name: dict[str, list[Row]] = {name: [] for name in names if name in looked}
    for part in whole:
        for row in part.rows:
            if row.resource in by_name:
                by_name[row.resource].append(row)
    for name, found in by_name.items():
        yield Observed(
            name,
            {row.peer: row.seen for row in found},
            tuple(row.peer for row in found if row.drifted),
            {row.peer: row.wanted for row in found if row.wanted is not None},
        )
