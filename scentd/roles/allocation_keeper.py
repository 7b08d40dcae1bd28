"""Keeps what the allocator has decided over a restart: writes what changed, once a second, and reads it at a start."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import msgspec

from scentd.core.allocate.actions import ACTIONS
from scentd.core.allocate.amounts import Amounts
from scentd.core.allocate.decide import Decider, PolicyState
from scentd.core.allocate.entry import AmountEntry
from scentd.core.allocate.plan import with_kinds
from scentd.model import Desired
from scentd.state.allocation import AllocationFile, Row

AMOUNT, POLICY, HELD, ACTION = "amount", "policy", "held", "action "  # kinds of row; an action's has its kind behind
ENTRIES = msgspec.msgpack.Decoder(AmountEntry)
STATES = msgspec.msgpack.Decoder(tuple[float | None, float | None, int | None, float | None])


class AllocationKeeper:
    """Reads once, then only writes. It forgets which senders a policy has fired at: those are found again."""

    def __init__(self, state_dir: str) -> None:
        self._file = AllocationFile(Path(state_dir) / "allocation.db")
        self._actions: dict[Row, bytes] = {}  # as they were written last
        self._held: Collection[str] = ()
        self._saved = Desired()

    @property
    def failures(self) -> int:
        return self._file.failures

    def load(self, decider: Decider, amounts: Amounts, policies: Collection[str], now: float) -> Desired:
        """Give the decider and the amounts what an earlier run has known, and return the desired state."""
        rows = self._file.load()
        entries: dict[tuple[str, str], AmountEntry] = {}
        states: dict[tuple[str, str], PolicyState] = {}
        actions: dict[str, dict[str, bytes]] = {}
        for (kind, a, b), value in rows.items():
            try:
                if kind == AMOUNT:
                    entries[a, b] = ENTRIES.decode(value)
                elif kind == POLICY:
                    since, fired_at, fired_epoch, asked = STATES.decode(value)
                    states[a, b] = PolicyState(since, fired_at, fired_epoch, asked=asked)
            except msgspec.DecodeError:  # of an older version; the policies decide anew
                continue
            if kind.startswith(ACTION):
                actions.setdefault(kind.removeprefix(ACTION), {})[a] = value
                self._actions[kind, a, b] = value
        amounts.adopt(entries.items(), policies, now)
        decider.restore(states)
        self._held = amounts.held = frozenset(a for kind, a, _ in rows if kind == HELD)
        kinds = {kind: ACTIONS[kind].load(found) for kind, found in actions.items() if kind in ACTIONS}
        self._saved = with_kinds(Desired(), kinds)
        return self._saved

    def save(self, decider: Decider, amounts: Amounts, desired: Desired) -> None:
        """Write what has changed since the last call; does not wait."""
        rows: dict[Row, bytes | None] = {}
        for key, entry in amounts.take_unsaved().items():
            rows[AMOUNT, *key] = msgspec.msgpack.encode(replace(entry, observed=None, due=float("inf")))
        for key, state in decider.take_unsaved().items():
            kept = (state.since, state.fired_at, state.fired_epoch, state.asked) if state is not None else None
            rows[POLICY, *key] = msgspec.msgpack.encode(kept) if kept is not None else None
        if desired is not self._saved:
            rows |= self._changed_actions(desired)
            self._saved = desired
        if amounts.held != self._held:
            rows |= {(HELD, name, ""): b"\1" if name in amounts.held else None for name in {*self._held, *amounts.held}}
            self._held = amounts.held
        self._file.save(rows)

    def close(self) -> None:
        self._file.close()

    def _changed_actions(self, desired: Desired) -> dict[Row, bytes | None]:
        now: dict[Row, bytes] = {
            (ACTION + kind, name, ""): value
            for kind, action in ACTIONS.items()
            for name, value in action.dump(desired.of(kind)).items()
        }
        before, self._actions = self._actions, now
        return {row: now.get(row) for row in {*before, *now} if before.get(row) != now.get(row)}
