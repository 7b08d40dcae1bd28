"""Delays from an accepted profile or alarm to the decision and to its effect. Pure: the times are arguments.

The steps are those of STEPS, and KIND_given for each kind of resource that was given or taken back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from scentd.control.status import DelayStatus
from scentd.model import Firing

STEPS = ("alarm_decided", "alarm_applied", "profile_decided", "profile_applied")


@dataclass(slots=True)
class Delay:
    """Seconds of one step."""

    count: int = 0
    total: float = 0.0
    largest: float = 0.0
    last: float = 0.0

    def add(self, seconds: float) -> None:
        seconds = max(0.0, seconds)  # negative if the clock was set back
        self.count += 1
        self.total += seconds
        self.largest = max(self.largest, seconds)
        self.last = seconds


class Delays:
    """Counts every firing when it is decided, and again when its action is in effect on the host."""

    def __init__(self) -> None:
        self._steps = {name: Delay() for name in STEPS}

    def record_decided(self, firings: Iterable[Firing]) -> None:
        for firing in firings:
            self._steps[f"{cause(firing)}_decided"].add(firing.at - firing.accepted_at)

    def record_applied(self, firings: Iterable[Firing], now: float) -> None:
        for firing in firings:
            self._steps[f"{cause(firing)}_applied"].add(now - firing.accepted_at)

    def record_given(self, kind: str, firing: Firing, now: float) -> None:
        """What the firing asked for of a resource of this kind is there: a step of its own, as some take seconds."""
        self._steps.setdefault(f"{kind}_given", Delay()).add(now - firing.accepted_at)

    def status(self) -> list[DelayStatus]:
        return [
            DelayStatus(name=name, count=d.count, mean=d.total / max(d.count, 1), largest=d.largest, last=d.last)
            for name, d in self._steps.items()
        ]


def cause(firing: Firing) -> str:
    return "alarm" if firing.alarm else "profile"
