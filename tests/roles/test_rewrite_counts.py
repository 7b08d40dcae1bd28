"""Counts that the kernel's table has, and that begin anew with it."""

from __future__ import annotations

from collections import Counter

from scentd.roles.rewrite_counts import RewriteCounts


class Told:
    """What a peer's traffic is told."""

    def __init__(self) -> None:
        self.packets: Counter[tuple[str, str]] = Counter()

    def take_outcome(self, address: str, outcome: str, packets: int) -> None:
        self.packets[outcome, address] += packets


def test_counts_grow_and_begin_anew():
    told = Told()
    counts = RewriteCounts(told)
    for kernel in ({"10.1.0.2": 3}, {"10.1.0.2": 3, "fd00::2": 4}, {"10.1.0.2": 2}, {}, {"10.1.0.2": 1}):
        counts.take(Counter({("translated", address): n for address, n in kernel.items()}))
    counts.take(Counter({("translated", "10.1.0.2"): 1, ("tunnelled", "fd00::2"): 5}))
    translated, tunnelled = "unstamped:translated", "unstamped:tunnelled"
    assert told.packets == {(translated, "10.1.0.2"): 6, (translated, "fd00::2"): 4, (tunnelled, "fd00::2"): 5}
    assert counts.totals == {translated: 10, tunnelled: 5}
