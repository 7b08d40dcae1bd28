"""What of ours somebody had removed from the host and was put back, and how often.

Whoever removes it again and again is a fighter, whom we do not outrun: from then on it is put back now and then.
"""

from __future__ import annotations

import logging
from collections import deque

log = logging.getLogger(__name__)

FIGHT, FIGHT_SECONDS = 10, 60.0  # put back so often within so many seconds: a fight
WAY_OUT = "put back every 10 s alone until this ends: `nft monitor` shows what removes it"


class Restored:
    """Times are CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self.count = 0
        self._last: deque[float] = deque(maxlen=FIGHT)

    def note(self, missing: str, now: float) -> None:
        """It is about to be put back."""
        before = self.is_fight(now)
        self.count += 1
        self._last.append(now)
        if not before:
            log.warning("%s; putting them back", missing)
        if self.is_fight(now) and not before:
            log.error("%s, %d times in %.0f s; %s", missing, FIGHT, FIGHT_SECONDS, WAY_OUT)

    def is_fight(self, now: float) -> bool:
        return len(self._last) == FIGHT and now - self._last[0] < FIGHT_SECONDS

    def why_not(self, now: float) -> str:
        """What status says of a fight; "" if there is none."""
        return f"somebody removes what is ours again and again; {WAY_OUT}" if self.is_fight(now) else ""
