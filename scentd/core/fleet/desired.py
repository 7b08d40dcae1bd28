"""What an allocator wants of another host: amounts of its resources, in parts; and what that host makes of them. Pure.

A part has one resource's amounts for some peers, and all that there is to say of these. Its number is (term, number):
the term is of the allocator's lease and rises with each owner, the number with each part of one owner. For each peer
only a higher number counts; a term below the highest is refused whole, and so is another owner of one term.

An amount stays when the bus is gone. What *restricts* carries its own end instead: an amount below the usual one of a
kind that may cut a peer off, and every wish with a timeout. At its end the host goes back to the usual amount.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from scentd.config.resource import Resource
from scentd.core.allocate.entry import AmountEntry, Key, bounded, same, winner
from scentd.core.fleet.lease import TERM_MAX

PART_PEERS = 2000  # in one part, of 250 bytes each at most
RESTRICT = 120.0  # seconds for which a restriction without a timeout stands unless it is said again
ALONE = 60.0  # seconds for which a resource belongs to the allocator that has said something of it last

Term = Annotated[int, Meta(ge=0, le=TERM_MAX)]
Text = Annotated[str, Meta(max_length=100)]


class DesiredAmount(Struct, frozen=True, array_like=True):
    peer: str
    amount: float
    end: float  # Unix time at which the host goes back to the usual amount; infinite: never
    timed: bool  # the end is that of a policy's wish; otherwise it is put off by each part
    policy: str  # that changed the amount last
    since: float  # Unix time of that change


class DesiredPart(Struct, frozen=True, array_like=True):
    instance: Text  # of the allocators with that name, which
    term: Term
    number: int
    at: float  # Unix time
    resource: str
    amounts: tuple[DesiredAmount, ...]


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(DesiredPart).decode


def groups(peers: Sequence[str]) -> list[Sequence[str]]:
    """The peers of a resource, in as many parts as they need."""
    return [peers[i : i + PART_PEERS] for i in range(0, len(peers), PART_PEERS)]


def desired_amount(section: Resource, peer: str, entry: AmountEntry, now: float) -> DesiredAmount | None:
    """What to say of one peer; None before anything is known. `now`: Unix time."""
    if entry.desired is None:
        return None
    _, wish = winner(section, entry.wishes)
    end, timed = math.inf, entry.timed and wish is not None
    if timed and wish is not None:
        end = wish.until
    elif section.restricts and entry.desired < section.usual:
        end = now + RESTRICT
    return DesiredAmount(peer, entry.desired, end, timed, entry.changed_by, entry.changed_at)


def is_sound(said: DesiredAmount) -> bool:
    """Whether its values can be what they are called. NaN is none of them."""
    return 0.0 <= said.amount < math.inf and said.end > 0.0 and said.since < math.inf


class Owner(Struct, frozen=True):
    """Who has the highest term of an allocator's name."""

    term: Term
    instance: Text


class Taken(Struct, frozen=True):
    """What was taken for one resource and peer."""

    allocator: str
    term: int
    number: int
    said: DesiredAmount
    given: float  # within this host's bounds; the usual amount after the end
    lasts: float  # seconds until its end when it was taken; infinite: it has none
    ended: bool = False


@dataclass(slots=True)
class Teller:
    allocator: str
    at: float  # steady seconds


class DesiredState:
    """What a host was told to give. `now` is steady seconds, `clock` Unix time."""

    def __init__(self) -> None:
        self.owners: dict[str, Owner] = {}  # by allocator
        self.taken: dict[Key, Taken] = {}
        self._offered: Mapping[str, Resource] = {}
        self._peers: Mapping[str, Collection[str]] = {}  # by resource
        self._heard: dict[str, Teller] = {}  # by resource
        self._ends: dict[Key, float] = {}  # steady seconds
        self._unsaved: set[Key] = set()
        self._new_owners: set[str] = set()

    def configure(self, offered: Iterable[Resource], peers: Iterable[str]) -> None:
        names = list(peers)
        self._offered = {r.name: r for r in offered}
        self._peers = {r.name: frozenset(p for p in names if r.peer in ("*", p)) for r in self._offered.values()}

    def restore(self, owners: Mapping[str, Owner], taken: Mapping[Key, Taken], now: float, clock: float) -> None:
        """What an earlier run has known. A restriction goes on for as long as it would have, and no longer."""
        self.owners, self.taken = dict(owners), dict(taken)
        for key, one in self.taken.items():
            if one.said.end < math.inf and not one.ended:
                self._ends[key] = now + min(one.said.end - clock, one.lasts)  # the clock may have been set back

    def given(self) -> dict[str, dict[str, float]]:
        """By resource and peer what this host was to give at last."""
        found: dict[str, dict[str, float]] = {}
        for (resource, peer), one in self.taken.items():
            if peer in self._peers.get(resource, ()):
                found.setdefault(resource, {})[peer] = one.given
        return found

    @property
    def restricted(self) -> int:
        """How many amounts have an end that is still to come."""
        return len(self._ends)

    def why_not(self, allocator: str, part: DesiredPart, now: float) -> str:
        """The name of what is wrong with a part; "" for nothing."""
        owner = self.owners.get(allocator)
        if owner is not None and part.term < owner.term:
            return "old_term"
        if owner is not None and part.term == owner.term and part.instance != owner.instance:
            return "second_allocator"
        if part.resource not in self._offered:
            return "unknown_resource"
        heard = self._heard.get(part.resource)
        if heard is not None and heard.allocator != allocator and now - heard.at < ALONE:
            return "second_allocator"
        return "" if all(map(is_sound, part.amounts)) else "garbage"

    def take(self, allocator: str, part: DesiredPart, now: float, clock: float) -> tuple[dict[str, float], set[str]]:
        """Take a part of which nothing is wrong. Returns by peer the amounts that change, and what was odd."""
        owner = Owner(part.term, part.instance)
        if self.owners.get(allocator) != owner:
            self.owners[allocator] = owner
            self._new_owners.add(allocator)
        self._heard[part.resource] = Teller(allocator, now)
        section, changes, odd = self._offered[part.resource], {}, set()
        for said in part.amounts:
            key, number = (part.resource, said.peer), (part.term, part.number)
            before = self.taken.get(key)
            if said.peer not in self._peers[part.resource]:
                odd.add("unknown_peer")
                continue
            if before is not None and before.allocator == allocator and number <= (before.term, before.number):
                odd.add("replayed")
                continue
            ended = said.end <= clock
            given = section.usual if ended else bounded(section, said.amount)
            if not ended and not same(given, said.amount):
                odd.add("clamped")
            self.taken[key] = Taken(allocator, *number, said, given, said.end - clock, ended)
            self._unsaved.add(key)
            self._ends.pop(key, None)
            if said.end < math.inf and not ended:
                self._ends[key] = now + said.end - clock
            # What somebody else has changed meanwhile is the provider's to correct or to take over (`drift`).
            if before is None or not same(before.given, given) or before.ended != ended:
                changes[said.peer] = given
        return changes, odd

    def due(self, now: float) -> dict[str, dict[str, float]]:
        """By resource and peer the amounts of what has ended."""
        changes: dict[str, dict[str, float]] = {}
        for key in [key for key, end in self._ends.items() if end <= now]:
            del self._ends[key]
            section, one = self._offered.get(key[0]), self.taken[key]
            if section is not None:
                self.taken[key] = msgspec.structs.replace(one, given=section.usual, ended=True)
                self._unsaved.add(key)
                changes.setdefault(key[0], {})[key[1]] = section.usual
        return changes

    def take_unsaved(self) -> tuple[dict[str, Owner], dict[Key, Taken]]:
        """What changed since the last call."""
        owners, keys = self._new_owners, self._unsaved
        self._new_owners, self._unsaved = set(), set()
        return {name: self.owners[name] for name in owners}, {key: self.taken[key] for key in keys}
