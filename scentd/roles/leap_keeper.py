"""Goes back to epochs from before a leap, when clocks that were wrong at both ends are right again (core/leaps.py).

What is kept lies in `daemon.state_dir`, so that a restart meanwhile changes nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from scentd.config.sections import Config
from scentd.core.leaps import LeapFile, Leaps, from_file, to_file
from scentd.core.pairs import Pairs
from scentd.state import durable
from scentd.state.epochs import Epochs
from scentd.state.slots import seen_slot
from scentd.system.clock import steady

log = logging.getLogger(__name__)

FILE = "leaps.json"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class LeapKeeper:
    """configure() comes first."""

    def __init__(self) -> None:
        self._leaps = Leaps()
        self._boot = BOOT_ID.read_text().strip()
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
        highest = {pair: epochs.row(pair).epoch for pair in self._peers}
        self._leaps.begin(highest, from_file(read(self._path), self._slots.items(), self._boot, steady()))

    def note(self, pair: int, epoch: int) -> None:
        """A packet of this epoch was accepted."""
        self._changed |= self._leaps.note(pair, epoch, steady())

    def fall_back(self) -> Iterator[tuple[int, int, int]]:
        """Go back where that is due; (pair, the epoch before the leap, the last one that may not be ahead again)."""
        self._changed |= self._leaps.expire(steady())
        for pair, (before, noted) in self._leaps.fall_back(time.time() + self._max_future).items():
            self._changed = True
            leapt = max(noted, self._epochs.row(pair).epoch)  # a worker may have accepted one since
            self._epochs.fall_back(pair, before, leapt)
            log.warning(
                "peer %s: epoch %d was accepted while both clocks were ahead; they are right again, so what comes "
                "after epoch %d is accepted again",
                self._peers[pair],
                leapt,
                before,
            )
            yield pair, before, self._epochs.row(pair).leapt

    def save(self) -> None:
        """Write what has changed. Blocks for a moment."""
        if not self._changed:
            return
        self._changed = False
        file = to_file(self._leaps.kept(), self._slots, self._boot)
        try:
            durable.write(self._path, msgspec.json.encode(file, order="sorted"))
        except OSError as error:
            log.error("%s: %s; kept in memory", self._path, error.strerror)


def read(path: Path) -> LeapFile:
    """The file; an empty one if there is none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=LeapFile)
    except FileNotFoundError:
        pass
    except (OSError, msgspec.MsgspecError, RecursionError) as error:
        log.warning("%s: %s; the epochs before leaps that it kept are forgotten", path, error)
    return LeapFile("", {})
