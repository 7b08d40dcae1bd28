"""How a budget is shared: max-min fairness. Pure.

Everybody gets its minimum and then what it asks for, up to one level that is the same for all and as high as the total
allows (Bertsekas and Gallager, "Data Networks", 1992, section 6.5.2). Who asks for little gets all of it; who asks for
much shares the rest equally.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)


class Demand(NamedTuple):
    minimum: float
    asked: float  # at least the minimum
    has: float  # now; decides who keeps a last indivisible unit


def share(demands: Mapping[K, Demand], total: float, whole: bool) -> dict[K, float]:
    """What each gets: together at most `total`, unless the minimums alone are more. `whole`: in whole units."""
    if sum(d.asked for d in demands.values()) <= total:
        return {key: d.asked for key, d in demands.items()}
    level = fair_level(list(demands.values()), total)
    if not whole:
        return {key: granted(d, level) for key, d in demands.items()}
    grants = {key: float(granted(d, math.floor(level))) for key, d in demands.items()}
    left = int(total - sum(grants.values()))
    unmet = [key for key, d in demands.items() if grants[key] < min(d.asked, math.floor(level) + 1)]
    unmet.sort(key=lambda key: demands[key].has <= grants[key])  # who has it keeps it; else in the order of `demands`
    for key in unmet[: max(left, 0)]:
        grants[key] += 1
    return grants


def granted(demand: Demand, level: float) -> float:
    return max(demand.minimum, min(demand.asked, level))


def fair_level(demands: list[Demand], total: float) -> float:
    """The level at which the grants add up to `total`. The sum grows with the level by pieces of a straight line."""
    points = sorted({x for d in demands for x in (d.minimum, d.asked)})
    low, high = 0, len(points) - 1
    while low < high:  # the first point at which the sum is at least `total`
        middle = (low + high) // 2
        if sum(granted(d, points[middle]) for d in demands) >= total:
            high = middle
        else:
            low = middle + 1
    above = points[low]
    below = points[low - 1] if low else 0.0
    base = sum(granted(d, below) for d in demands)
    rising = sum(1 for d in demands if d.minimum <= below and d.asked >= above)
    return below + (total - base) / rising if rising and total > base else below
