"""A clock that nobody sets, and whether somebody has set the wall clock."""

from __future__ import annotations

import time

JUMP = 2.0  # seconds within a look: NTP slews by less, and suspending stops the monotonic clock alone


def steady() -> float:
    """Seconds that go on while the machine is suspended: CLOCK_BOOTTIME."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class ClockWatch:
    """Compares the wall clock with the monotonic one, from look to look."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def jumped(self) -> float:
        """By how many seconds the wall clock has been set since the last look; 0.0: it goes as it should."""
        before, self._offset = self._offset, time.time() - time.monotonic()
        jump = self._offset - before
        return jump if abs(jump) > JUMP else 0.0
