"""Whether a message is newer than the last one of its sender: a bus may deliver twice, late and out of order. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

FORGET = 60.0  # seconds of silence after which a sender may begin anew, whatever its clock says


class Serial(NamedTuple):
    """A sender's run, by the Unix time of its start in nanoseconds, and the message's number in it."""

    run: int
    number: int


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
