"""Goes back to epochs from before a leap, when clocks that were wrong at both ends are right again (core/leaps.py).

What is kept lies in `daemon.state_dir`, so that a restart meanwhile changes nothing.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path

from scentd.core.leaps import Leaps, from_document, to_document
from scentd.state import durable

log = logging.getLogger(__name__)

FILE = "leaps.json"


class LeapKeeper:
    def __init__(self) -> None:
        self._leaps = Leaps()
        self._path: Path | None = None
        self._slots: dict[int, bytes] = {}
        self._changed = False

    def configure(self, state_dir: str, slots: Mapping[int, bytes], highest: Mapping[int, int]) -> None:
        """`slots`: the name of each verified pair's slot; `highest`: its highest epoch."""
        self._path, self._slots = Path(state_dir) / FILE, dict(slots)
        self._leaps.begin(highest, from_document(read(self._path), self._slots.items()), time.monotonic())

    def note(self, pair: int, epoch: int) -> None:
        """A packet of this epoch was accepted."""
        self._changed |= self._leaps.note(pair, epoch, time.monotonic())

    def look(self, max_future: float) -> dict[int, tuple[int, int]]:
        """The pairs that fall back now: to which epoch, from which one."""
        now = time.monotonic()
        self._changed |= self._leaps.expire(now)
        fallen = self._leaps.fall_back(time.time() + max_future)
        self._changed |= bool(fallen)
        return fallen

    def save(self) -> None:
        """Write what has changed. Blocks for a moment."""
        if not self._changed or self._path is None:
            return
        self._changed = False
        document = to_document(self._leaps.before(), self._slots)
        try:
            durable.write(self._path, json.dumps(document, sort_keys=True).encode())
        except OSError as error:
            log.error("%s: %s; kept in memory", self._path, error.strerror)


def read(path: Path) -> object:
    """The document; None if there is none that can be read."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
