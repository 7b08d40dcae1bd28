"""Tells the log when full queues begin to drop packets, and once a minute while they do."""

from __future__ import annotations

import logging
import time
from collections import Counter

log = logging.getLogger(__name__)

PAUSE = 60.0  # seconds
SETTINGS = {"overload_stamp": "stamp.overload", "overload_verify": "verify.overload"}  # by the worker's counter


class OverloadLog:
    def __init__(self) -> None:
        self._told: Counter[str] = Counter()
        self._due: Counter[str] = Counter()  # monotonic time before which nothing more is said

    def look(self, counters: Counter[str]) -> None:
        """`counters` are the totals of all workers."""
        now = time.monotonic()
        for name, setting in SETTINGS.items():
            dropped = counters[name] - self._told[name]
            if dropped > 0 and now >= self._due[name]:
                self._told[name] += dropped
                self._due[name] = int(now + PAUSE)
                log.warning(
                    "%d packets found a full queue and were dropped, as %s says: more datapath.workers, or a longer "
                    "datapath.queue_length",
                    dropped,
                    setting,
                )
