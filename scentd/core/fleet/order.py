"""Whether a message is newer than the last one of its sender: a bus may deliver twice, late and out of order. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from scentd.config.sections import Verify

MAX_AGE, MAX_FUTURE = Verify().max_age, Verify().max_future  # seconds: which epochs receivers take by default
LATE = 60.0  # seconds by which a message's date may differ from the receiver's clock
FORGET = 2 * LATE + 1  # seconds of silence after which a sender may begin anew: what it said before is too late by then


class Serial(NamedTuple):
    """A sender's run, by the Unix time of its start in nanoseconds, and the message's number in it."""

    run: int
    number: int


def is_late(at: float, now: float) -> bool:
    """Whether a message dated `at` (Unix time) is a recording, or from a host whose clock is wrong. So is NaN."""
    return not now - LATE <= at <= now + LATE


@dataclass(slots=True)
class Last:
    serial: Serial
    heard: float  # steady seconds


class Order:
    """The newest message of each sender. A sender whose clock was set back is heard again after FORGET seconds."""

    def __init__(self) -> None:
        self._last: dict[str, Last] = {}

    def take(self, sender: str, serial: Serial, now: float) -> bool:
        """Whether the message is a new one; then it is the newest. `now`: steady seconds."""
        last = self._last.get(sender)
        if last is not None and serial <= last.serial and now - last.heard < FORGET:
            return False
        self._last[sender] = Last(serial, now)
        return True
