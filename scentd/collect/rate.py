"""Counters to rates. Pure: counters and a monotonic time in, rates out."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

# Readings closer than this give no rate: a burst of a few packets would look like full load.
MIN_ELAPSED = 0.01


class Rates(Generic[Key]):
    """Increase per second of a set of counters since the reading before."""

    def __init__(self, restarts: bool = False) -> None:
        """`restarts`: a counter that went down began again at 0 (Prometheus's rule for `rate`). Else that is a gap: a
        driver may have corrected it by a little.
        """
        self._restarts = restarts
        self._at: float | None = None
        self._counters: dict[Key, float] = {}

    def update(self, counters: Mapping[Key, float], at: float) -> dict[Key, float]:
        """Rates by key; `at` in monotonic seconds.

        A new counter has no rate yet. One that went down has none, either, or began again at 0. Less than
        MIN_ELAPSED after the last reading the result is {}, and the older reading stays the base. If the clock
        went back, the result is {}, and this reading is the new base.
        """
        if self._at is None or at < self._at:
            elapsed = None
        else:
            elapsed = at - self._at
            if elapsed < MIN_ELAPSED:
                return {}
        before, self._counters, self._at = self._counters, dict(counters), at
        if elapsed is None:
            return {}
        return {
            key: (value - before[key] if value >= before[key] else value) / elapsed
            for key, value in counters.items()
            if key in before and (self._restarts or value >= before[key])
        }
