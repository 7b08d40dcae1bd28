"""Highest epochs that leapt: what a receiver may go back to when both ends' clocks were wrong together. Pure.

A receiver takes nothing below a pair's highest epoch. If its own clock and the sender's were ahead for a while, that
epoch is ahead of everything that comes when both are right again. So the epoch before a leap, a rise that the monotonic
clock does not explain, is kept for an hour. An epoch that rose without a leap never falls: whoever moves a receiver's
clock back makes it take nothing old. Times are CLOCK_MONOTONIC unless they are called Unix times.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

KEPT = 3600.0  # seconds
SLACK = 5.0  # seconds by which an epoch may rise faster than the clock: it comes late, or its sender's clock is set


class Seen(NamedTuple):
    epoch: int
    at: float | None  # None: before this daemon


NOTHING = Seen(0, None)


class Leaps:
    """The pairs' highest epochs, when they were seen, and before which leap there was another one."""

    def __init__(self) -> None:
        self._highest: dict[int, Seen] = {}  # by pair
        self._before: dict[int, tuple[Seen, float]] = {}  # by pair: what was highest before its leap, kept until

    def begin(self, highest: Mapping[int, int], before: Mapping[int, int], now: float) -> None:
        """Go on from an earlier daemon's epochs, and from what it kept."""
        known = {pair: self._highest.get(pair, NOTHING) for pair in highest}
        self._highest = {p: known[p] if known[p].epoch >= epoch else Seen(epoch, None) for p, epoch in highest.items()}
        self._before = {pair: kept for pair, kept in self._before.items() if pair in highest}
        for pair, epoch in before.items():
            self._before.setdefault(pair, (Seen(epoch, None), now + KEPT))

    def note(self, pair: int, epoch: int, now: float) -> bool:
        """Note an accepted epoch. Whether there is something new to keep."""
        highest = self._highest.get(pair, NOTHING)
        if epoch <= highest.epoch:
            return False
        self._highest[pair] = Seen(epoch, now)
        explained = SLACK + (now - highest.at if highest.at is not None else 0.0)
        if not highest.epoch or epoch - highest.epoch <= explained or pair in self._before:
            return False
        self._before[pair] = highest, now + KEPT
        return True

    def before(self) -> dict[int, int]:
        """The epochs to keep on disk, by pair."""
        return {pair: seen.epoch for pair, (seen, _) in self._before.items()}

    def expire(self, now: float) -> bool:
        """Forget what was kept for long enough. Whether there was any."""
        expired = [pair for pair, (_, until) in self._before.items() if until <= now]
        for pair in expired:
            del self._before[pair]
        return bool(expired)

    def fall_back(self, limit: float) -> dict[int, tuple[int, int]]:
        """The pairs whose highest epoch leapt beyond `limit`, a Unix time: (the epoch to go back to, the highest)."""
        fallen = {p: kept for p, kept in self._before.items() if self._highest.get(p, NOTHING).epoch > limit}
        result = {pair: (before.epoch, self._highest[pair].epoch) for pair, (before, _) in fallen.items()}
        for pair, (before, _) in fallen.items():
            self._highest[pair] = before
            del self._before[pair]
        return result


def to_document(before: Mapping[int, int], slots: Mapping[int, bytes]) -> dict[str, int]:
    """What is kept, by the names of the pairs' slots: numbers are this daemon's own."""
    return {slots[pair].hex(): epoch for pair, epoch in before.items() if pair in slots}


def from_document(document: object, slots: Iterable[tuple[int, bytes]]) -> dict[int, int]:
    """The other direction; entries of no meaning are left out."""
    if not isinstance(document, dict):
        return {}
    found = {pair: document.get(slot.hex()) for pair, slot in slots}
    return {pair: epoch for pair, epoch in found.items() if isinstance(epoch, int) and 0 <= epoch < 1 << 32}
