"""Fragments to whole profiles. Pure.

Only fragments from accepted packets come here, so state is bounded by the number
of pairs: one set of fragments each, of the newest epoch.
"""

from __future__ import annotations

from scentd.model import Fragment
from scentd.wire import layout

ALL = (1 << layout.FRAGMENTS) - 1


def cut(
    pair: int, epoch: int, sealed: bytes, glance: tuple[float, float], source: bytes, seen: int = ALL
) -> list[Fragment]:
    """The fragments of a sealed profile of which those with a bit in `seen` are there. `glance`: (load, threat)."""
    size = layout.FRAGMENT_LEN
    return [
        Fragment(pair, epoch, i, sealed[size * i : size * (i + 1)], *glance, source)
        for i in range(layout.FRAGMENTS)
        if seen >> i & 1
    ]


class Assembler:
    """Collects each pair's fragments; any order, any repetition."""

    def __init__(self) -> None:
        self._parts: dict[int, tuple[int, dict[int, bytes]]] = {}

    def add(self, fragment: Fragment) -> bytes | None:
        """The 130 sealed bytes when this fragment completes its epoch, once; otherwise None.

        Fragments of an older epoch than the newest are left out: they cannot
        complete a profile that would still be used.
        """
        epoch, parts = self._parts.get(fragment.pair, (0, {}))
        if fragment.epoch < epoch:
            return None
        if fragment.epoch > epoch:
            parts = {}
            self._parts[fragment.pair] = (fragment.epoch, parts)
        if fragment.index in parts:
            return None
        parts[fragment.index] = fragment.data
        if len(parts) < layout.FRAGMENTS:
            return None
        return b"".join(parts[i] for i in range(layout.FRAGMENTS))

    def keep_only(self, pairs: set[int]) -> None:
        """Forget pairs that are no longer configured."""
        self._parts = {n: state for n, state in self._parts.items() if n in pairs}
