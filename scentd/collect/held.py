"""The security events of one source that have not ended, bounded."""

from __future__ import annotations

import threading
from dataclasses import replace

from scentd.model import SecurityEvent

MAX_HELD = 1024  # events; beyond them only events without a node are taken

Key = tuple[str, str]  # kind and node
Held = dict[Key, tuple[SecurityEvent, float]]  # with the monotonic end; what was reported last stands last


class HeldEvents:
    """One event for each kind, node and severity (in hundredths), each until its own end. For any thread.

    A mild event that repeats must not keep up the severe one that came before it, so each severity has a time of its
    own. Of a flood the most severe keep their nodes. The others are summed up in one event without a node for each kind
    and severity, so that the threat is never lost.
    """

    def __init__(self) -> None:
        self.summed = 0  # events that lost their node
        self._by_severity: dict[float, Held] = {}
        self._earliest = float("inf")  # nothing ends before
        self._lock = threading.Lock()

    def hold(self, new: SecurityEvent, monotonic: float) -> bool:
        """Keep an event from now on (`new.at`, and `monotonic` on CLOCK_MONOTONIC).

        Whether it begins; False if it prolongs one that is held.
        """
        end = monotonic + (new.until - new.at)
        with self._lock:
            if new.node and not self._is_held(new, monotonic) and not self._make_room(new.severity, monotonic):
                self.summed += 1
                new = replace(new, node="")
            return self._put(new, end, monotonic)

    def active(self, now: float, monotonic: float) -> list[SecurityEvent]:
        """Events that have ended by neither clock: a wall clock set back does not hold them up."""
        with self._lock:
            every = [entry for held in self._by_severity.values() for entry in held.values()]
        return [event for event, end in every if event.until > now and end > monotonic]

    def adopt(self, other: HeldEvents) -> None:
        """Take over the events that `other` holds."""
        with other._lock:
            copies = {severity: held.copy() for severity, held in other._by_severity.items()}
            earliest = other._earliest
        with self._lock:
            for severity, held in copies.items():
                self._by_severity[severity] = held | self._by_severity.get(severity, {})
            self._earliest = min(self._earliest, earliest)

    def _is_held(self, event: SecurityEvent, monotonic: float) -> bool:
        _, end = self._of(event.severity).get((event.kind, event.node), (None, monotonic))
        return end > monotonic

    def _of(self, severity: float) -> Held:
        return self._by_severity.setdefault(round(severity, 2), {})

    def _put(self, new: SecurityEvent, end: float, monotonic: float) -> bool:
        held, key = self._of(new.severity), (new.kind, new.node)
        before = held.pop(key, None)
        if before is not None and before[1] > end:  # one that lasts longer is not cut short
            new, end = before
        held[key] = new, end
        self._earliest = min(self._earliest, end)
        return before is None or before[1] <= monotonic

    def _make_room(self, severity: float, monotonic: float) -> bool:
        """Remove what has ended, or else take the node from the oldest event milder than `severity`."""
        if sum(map(len, self._by_severity.values())) < MAX_HELD:
            return True
        if monotonic >= self._earliest:
            self._remove_ended(monotonic)
            return self._make_room(severity, monotonic)
        for milder in sorted(self._by_severity):
            named = next((key for key in self._by_severity[milder] if key[1]), None)
            if milder < severity and named:
                event, end = self._by_severity[milder].pop(named)
                self._put(replace(event, node=""), end, monotonic)
                self.summed += 1
                return True
        return False

    def _remove_ended(self, monotonic: float) -> None:
        for severity, held in list(self._by_severity.items()):
            self._by_severity[severity] = {key: entry for key, entry in held.items() if entry[1] > monotonic}
            if not self._by_severity[severity]:
                del self._by_severity[severity]
        ends = [end for held in self._by_severity.values() for _, end in held.values()]
        self._earliest = min(ends, default=float("inf"))
