"""Goes back to epochs from before a leap, when clocks that were wrong at both ends are right again (core/leaps.py).

What is kept lies in `daemon.state_dir`, so that a restart meanwhile changes nothing.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from scentd.config.sections import Config
from scentd.core.leaps import Leaps, from_document, to_document
from scentd.core.pairs import Pairs
from scentd.state import durable
from scentd.state.epochs import Epochs
from scentd.state.slots import seen_slot

log = logging.getLogger(__name__)

FILE = "leaps.json"


class LeapKeeper:
    """configure() comes first."""

    def __init__(self) -> None:
        self._leaps = Leaps()
        self._path = Path()
        self._peers: dict[int, str] = {}  # by pair
        self._slots: dict[int, bytes] = {}
        self._changed = False

    def configure(self, config: Config, pairs: Pairs, epochs: Epochs) -> None:
        verified = [pair for pair in pairs.all if pair.verifies]
        self._path, self._epochs = Path(config.daemon.state_dir) / FILE, epochs
        self._max_future = config.verify.max_future
        self._peers = {pair.number: pair.peer.name for pair in verified}
        self._slots = {pair.number: seen_slot(pair.network.name, pair.peer.name) for pair in verified}
        highest = {pair: epochs.row(pair)[0] for pair in self._peers}
        self._leaps.begin(highest, from_document(read(self._path), self._slots.items()), time.monotonic())

    def note(self, pair: int, epoch: int) -> None:
        """A packet of this epoch was accepted."""
        self._changed |= self._leaps.note(pair, epoch, time.monotonic())

    def fall_back(self) -> Iterator[tuple[int, int, int]]:
        """Go back where that is due; (pair, the epoch before the leap, the last one that may not be ahead again)."""
        self._changed |= self._leaps.expire(time.monotonic())
        for pair, (before, leapt) in self._leaps.fall_back(time.time() + self._max_future).items():
            self._changed = True
            self._epochs.fall_back(pair, before, leapt)
            log.warning(
                "peer %s: epoch %d was accepted while both clocks were ahead; they are right again, so what comes "
                "after epoch %d is accepted again",
                self._peers[pair],
                leapt,
                before,
            )
            yield pair, before, self._epochs.leapt[pair]

    def save(self) -> None:
        """Write what has changed. Blocks for a moment."""
        if not self._changed:
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
