"""Numbers for people and for JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most, to four digits: more would be noise."""
    return {
        name: float(f"{of(values):.4g}") for name, of in (("median", statistics.median), ("min", min), ("max", max))
    }


def columns(rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(w) if n else cell.ljust(w) for n, (cell, w) in enumerate(zip(r, widths, strict=True)))
        for r in rows
    )
