"""The highest epochs, issued and seen: a small memory-mapped file.

Workers and daemon share its pages, and the kernel writes them back even if both die,
so neither kill -9 nor a restart opens a replay window or lets an epoch be used twice.
Layout: a 16-byte magic, the number of slots (8 bytes), 8 bytes of identity per slot,
then the 32-bit native numbers of a tables.EpochRow per slot. Earlier layouts lack the last of these.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from struct import Struct

from scentd.core.tables import BEFORE, EPOCH_ROW, LAG, LEAPT, SINCE, EpochRow, raise_row
from scentd.errors import HostError

MAGIC = b"scentd epochs 3\n"
_HEADER = len(MAGIC) + 8
_ROWS = {MAGIC: EPOCH_ROW, b"scentd epochs 2\n": 4, b"scentd epochs 1\n": 2}  # numbers of a slot
_FREE = b"\0" * 8
ROW = Struct(f"={EPOCH_ROW}I")
_SPARE = 256  # slots beyond those in use, so that most reloads need no new file


def slot_id(purpose: str, *public: bytes) -> bytes:
    """Eight bytes that name a slot: `purpose` is "issued" or "seen"."""
    return sha256(b"|".join((purpose.encode(), *public))).digest()[:8]


class Epochs:
    """The mapped file. `values` has EPOCH_ROW numbers for each slot."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        count = int.from_bytes(self._map[len(MAGIC) : _HEADER], "big")
        ids = [self._map[_HEADER + 8 * i : _HEADER + 8 * i + 8] for i in range(count)]
        self._slots = {id_: i for i, id_ in enumerate(ids) if id_ != _FREE}
        self._free = [i for i, id_ in enumerate(ids) if id_ == _FREE]
        self.values = memoryview(self._map)[_HEADER + 8 * count :].cast("I")

    def slot(self, id_: bytes) -> int:
        return self._slots[id_]

    def claim(self, ids: Sequence[bytes]) -> bool:
        """Give each id a slot in the shared file; False if it has too few free slots."""
        new = [i for i in dict.fromkeys(ids) if i not in self._slots]
        if len(new) > len(self._free):
            return False
        for id_ in new:
            slot = self._free.pop(0)
            self._map[_HEADER + 8 * slot : _HEADER + 8 * slot + 8] = id_
            self._slots[id_] = slot
        return True

    def raise_to(self, other: Epochs) -> None:
        """Raise the epochs to those of `other`, the file that this one replaces and that was in use meanwhile."""
        for id_, (epoch, since, _, leapt, lag) in other.entries().items():
            if id_ in self._slots:
                at = EPOCH_ROW * self._slots[id_]
                self.raise_row(self._slots[id_], epoch, since)
                self.values[at + LEAPT] = max(leapt, self.values[at + LEAPT])
                self.values[at + LAG] = lag

    def epoch(self, id_: bytes) -> int:
        return self.values[EPOCH_ROW * self._slots[id_]]

    def set_epoch(self, id_: bytes, epoch: int) -> None:
        self.values[EPOCH_ROW * self._slots[id_]] = epoch

    def row(self, slot: int) -> EpochRow:
        return EpochRow(*self.values[EPOCH_ROW * slot : EPOCH_ROW * (slot + 1)])

    def raise_row(self, slot: int, epoch: int, since: int) -> None:
        """Note an accepted epoch if it is the highest."""
        raise_row(self.values, slot, epoch, since)

    def fall_back(self, slot: int, epoch: int, leapt: int) -> None:
        """Go back to an epoch before a leap to `leapt`. Epochs up to there may not be ahead of the clock any more."""
        at = EPOCH_ROW * slot
        self.values[at + LEAPT] = max(leapt, self.values[at + LEAPT])
        self.values[at + SINCE] = self.values[at + BEFORE] = 0
        self.values[at] = epoch

    def set_lag(self, slot: int, lag: int) -> None:
        """Accept epochs of up to so many seconds below the highest, from now on."""
        self.values[EPOCH_ROW * slot + LAG] = lag

    def entries(self) -> dict[bytes, EpochRow]:
        return {id_: self.row(slot) for id_, slot in self._slots.items()}

    def sync(self) -> None:
        """Write the pages to the disk, against a crash of the machine."""
        self._map.flush()

    def close(self) -> None:
        self.values.release()
        self._map.close()


def prepare(path: Path, ids: Sequence[bytes]) -> Epochs:
    """Open the file, with a slot for each id; existing entries are kept. Raises HostError.

    A foreign or truncated file is renamed to PATH.bad, never overwritten. The new file has
    no epochs, so freshness depends on verify.max_age until epochs are seen.
    """
    before: dict[bytes, EpochRow] = {}
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.exists():
            if magic_of(path) == MAGIC:
                epochs = Epochs(path)
                if epochs.claim(ids):
                    return epochs
                before = epochs.entries()
                epochs.close()
            elif magic_of(path):
                before = earlier_entries(path.read_bytes())
            else:
                path.rename(path.with_suffix(".bad"))
        _write(path, ids, before)
    except OSError as error:
        way_out = "it keeps the highest epochs, and a unit may write only what StateDirectory= or ReadWritePaths= names"
        raise HostError(f"daemon.state_dir {path.parent}: {error.strerror}; {way_out}") from None
    return Epochs(path)


def magic_of(path: Path) -> bytes:
    """The layout of a whole file; empty if it is none of ours."""
    with open(path, "rb") as file:
        header = file.read(_HEADER)
        size = os.fstat(file.fileno()).st_size
    magic = header[: len(MAGIC)]
    slots = int.from_bytes(header[len(MAGIC) :], "big")
    fits = magic in _ROWS and size == _HEADER + (8 + 4 * _ROWS[magic]) * slots
    return magic if fits else b""


def earlier_entries(data: bytes) -> dict[bytes, EpochRow]:
    """The entries of a file of an earlier layout."""
    row, count = _ROWS[data[: len(MAGIC)]], int.from_bytes(data[len(MAGIC) : _HEADER], "big")
    numbers = memoryview(data[_HEADER + 8 * count :]).cast("I")
    names = (data[_HEADER + 8 * i : _HEADER + 8 * i + 8] for i in range(count))
    return {name: EpochRow(*numbers[row * i : row * (i + 1)]) for i, name in enumerate(names) if name != _FREE}


def _write(path: Path, ids: Sequence[bytes], before: dict[bytes, EpochRow]) -> None:
    # Slots of identities that left the configuration are kept: if one returns, its old epochs must stay refused.
    names = list(dict.fromkeys((*before, *ids)))
    count = len(names) + _SPARE
    data = MAGIC + count.to_bytes(8, "big")
    data += b"".join(names) + b"\0" * 8 * _SPARE
    rows = b"".join(ROW.pack(*before.get(name, EpochRow())) for name in names)
    temporary = path.with_suffix(".new")
    with open(temporary, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(data + rows.ljust(ROW.size * count, b"\0"))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
