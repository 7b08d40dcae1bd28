"""Keeps what a host was told to give over a restart, so that nothing older is taken then."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from scentd.core.allocate.entry import Key
from scentd.core.fleet.desired import DesiredState, Owner, Taken
from scentd.state.allocation import AllocationFile, Row

OWNER, TAKEN = "owner", "taken"  # kinds of row
_encode = msgspec.msgpack.Encoder().encode
_owner = msgspec.msgpack.Decoder(Owner).decode
_taken = msgspec.msgpack.Decoder(Taken).decode


class DesiredKeeper:
    """The database `desired.db` in daemon.state_dir."""

    def __init__(self, state_dir: str) -> None:
        self._file = AllocationFile(Path(state_dir) / "desired.db", survives_power=True)

    @property
    def failures(self) -> int:
        return self._file.failures

    def load(self, state: DesiredState, now: float, clock: float) -> None:
        """`now`: steady seconds; `clock`: Unix time."""
        owners: dict[str, Owner] = {}
        taken: dict[Key, Taken] = {}
        for (kind, a, b), value in self._file.load().items():
            try:
                if kind == OWNER:
                    owners[a] = _owner(value)
                elif kind == TAKEN:
                    taken[a, b] = _taken(value)
            except msgspec.MsgspecError:  # of another version: the allocator says it again
                continue
        state.restore(owners, taken, now, clock)

    def save(self, owners: Mapping[str, Owner], taken: Mapping[Key, Taken]) -> None:
        """Write these, and return when they are written or that has failed. Called on a thread that may wait."""
        rows: dict[Row, bytes | None] = {(OWNER, name, ""): _encode(owner) for name, owner in owners.items()}
        rows |= {(TAKEN, *key): _encode(one) for key, one in taken.items()}
        self._file.save(rows)
        self._file.wait()

    def close(self) -> None:
        self._file.close()
