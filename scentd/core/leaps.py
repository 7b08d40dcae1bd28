"""Highest epochs that leapt: what a receiver may go back to when both ends' clocks were wrong together. Pure.

A receiver takes nothing below a pair's highest epoch. If its own clock and the sender's were ahead for a while, that
epoch is ahead of everything that comes when both are right again. So the epoch before a leap, a rise that the
receiver's steady clock does not explain, is kept for an hour. An epoch that rose without a leap never falls: whoever
moves a receiver's clock back makes it take nothing old. Times are CLOCK_BOOTTIME unless they are called Unix times: it
goes on while the machine is suspended, and a restart of the daemon does not change it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from msgspec import Struct

KEPT = 3600.0  # seconds
SLACK = 5.0  # seconds by which epochs may get ahead of the steady clock: one came late, or its sender's clock was set
MAX_KEPT = 8  # epochs of a pair


def is_leapt(epoch: int, now: float, max_future: float) -> bool:
    """Whether an epoch that was once accepted is of clocks that were wrong: it is so far ahead that nobody takes it.

    Where nobody can keep what was before a leap, as no order is promised (a bus), such an epoch makes no other one old.
    """
    return epoch > now + max_future


class Kept(NamedTuple):
    """The highest epoch before a leap. `lead`: what epochs were ahead of the steady clock then, None if unknown."""

    epoch: int
    lead: float | None
    until: float


class LeapFile(Struct):
    """What is kept, as it lies on disk: [epoch, until] by the names of the pairs' slots; numbers are a daemon's own."""

    boot: str  # in another boot the steady clock is another one
    leaps: dict[str, list[tuple[int, float]]]


class Leaps:
    """The pairs' highest epochs, how far they are ahead of the steady clock, and the epochs before leaps."""

    def __init__(self) -> None:
        self._highest: dict[int, int] = {}  # by pair
        self._lead: dict[int, float] = {}  # by pair: epoch less steady clock at the first of them, and after each leap
        self._kept: dict[int, list[Kept]] = {}  # by pair, the oldest first

    def begin(self, highest: Mapping[int, int], kept: Mapping[int, list[Kept]]) -> None:
        """Go on from an earlier daemon's epochs, and from what it kept. Pairs that are known already go on."""
        self._highest = {pair: max(epoch, self._highest.get(pair, 0)) for pair, epoch in highest.items()}
        self._lead = {pair: lead for pair, lead in self._lead.items() if pair in highest}
        stored = {pair: [k for k in kept.get(pair, ()) if 0 < k.epoch < epoch] for pair, epoch in highest.items()}
        self._kept = {pair: found for pair in highest if (found := self._kept.get(pair, stored[pair]))}

    def note(self, pair: int, epoch: int, now: float) -> bool:
        """Note an accepted epoch. Whether there is something new to keep."""
        highest = self._highest.get(pair, 0)
        if epoch <= highest:
            return False
        self._highest[pair] = epoch
        before, lead = self._lead.get(pair), epoch - now
        risen = epoch - highest if before is None else lead - before
        if before is not None and risen <= SLACK:  # small rises add up
            return False
        self._lead[pair] = lead
        kept = self._kept.get(pair, [])
        if not highest or risen <= SLACK or (kept and kept[-1].epoch == highest):
            return False
        # Of too many the oldest stays: it is the likeliest to be from before clocks were wrong.
        self._kept[pair] = [*kept[:1], *kept[1:][-(MAX_KEPT - 2) :], Kept(highest, before, now + KEPT)]
        return True

    def kept(self) -> Mapping[int, list[Kept]]:
        return self._kept

    def expire(self, now: float) -> bool:
        """Forget what was kept for long enough. Whether there was any."""
        before = self._kept
        left = {pair: [k for k in kept if k.until > now] for pair, kept in before.items()}
        self._kept = {pair: kept for pair, kept in left.items() if kept}
        return self._kept != before

    def fall_back(self, limit: float) -> dict[int, tuple[int, int]]:
        """The pairs whose highest epoch leapt beyond `limit`, a Unix time: (the epoch to go back to, the highest).

        That is the newest kept one within the limit. It stays in what is kept until its hour is over.
        """
        result = {}
        for pair, kept in self._kept.items():
            within = [k for k in kept if k.epoch <= limit]
            if within and self._highest[pair] > limit:
                self._kept[pair], back = within, within[-1]
                result[pair] = back.epoch, self._highest[pair]
                self._highest[pair] = back.epoch
                self._lead.pop(pair, None)
                if back.lead is not None:
                    self._lead[pair] = back.lead
        return result


def to_file(kept: Mapping[int, list[Kept]], slots: Mapping[int, bytes], boot: str) -> LeapFile:
    return LeapFile(boot, {slots[p].hex(): [(k.epoch, k.until) for k in found] for p, found in kept.items()})


def from_file(file: LeapFile, slots: Iterable[tuple[int, bytes]], boot: str, now: float) -> dict[int, list[Kept]]:
    """The other direction. What was kept in another boot is kept for an hour anew: nobody knows how long it was."""

    def until(stored: float) -> float:
        return min(stored, now + KEPT) if file.boot == boot else now + KEPT

    found = {pair: file.leaps.get(slot.hex(), [])[:MAX_KEPT] for pair, slot in slots}
    return {
        pair: [Kept(epoch, None, until(end)) for epoch, end in sorted(rows)] for pair, rows in found.items() if rows
    }
