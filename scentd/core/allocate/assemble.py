"""Fragments to whole profiles. Pure.

Only fragments of accepted packets come here, so the number of pairs bounds the state: each pair has one set of
fragments, of its newest epoch.
"""

from __future__ import annotations

from scentd.model import Fragment
from scentd.wire import layout

ALL = (1 << layout.FRAGMENTS) - 1


def cut(
    pair: int,
    epoch: int,
    sealed: bytes,
    glance: tuple[float, float],
    source: bytes,
    key_ids: bytes,
    seen: int = ALL,
) -> list[Fragment]:
    """Cut the fragments with a bit in `seen` out of a sealed profile. `glance`: (load, threat)."""
    size = layout.FRAGMENT_LEN
    return [
        Fragment(pair, epoch, i, sealed[size * i : size * (i + 1)], *glance, source, key_ids)
        for i in range(layout.FRAGMENTS)
        if seen >> i & 1
    ]


class Assembler:
    """Collects each pair's fragments, in any order and with any repetition."""

    def __init__(self) -> None:
        self._parts: dict[int, tuple[int, bytes, dict[int, bytes]]] = {}  # pair -> epoch, key ids, parts

    def add(self, fragment: Fragment) -> bytes | None:
        """Add a fragment. Returns the 130 sealed bytes if it completes its epoch, once; otherwise None.

        Fragments of epochs older than the newest are ignored: their profile would no longer be used. So are those under
        other keys than the epoch's first: they are parts of another sealed profile.
        """
        epoch, key_ids, parts = self._parts.get(fragment.pair, (0, b"", {}))
        if fragment.epoch < epoch:
            return None
        if fragment.epoch > epoch:
            key_ids, parts = fragment.key_ids, {}
            self._parts[fragment.pair] = (fragment.epoch, key_ids, parts)
        if fragment.index in parts or fragment.key_ids != key_ids:
            return None
        parts[fragment.index] = fragment.data
        if len(parts) < layout.FRAGMENTS:
            return None
        return b"".join(parts[i] for i in range(layout.FRAGMENTS))

    def keep_only(self, pairs: set[int]) -> None:
        """Forget pairs that are no longer configured."""
        self._parts = {n: state for n, state in self._parts.items() if n in pairs}
