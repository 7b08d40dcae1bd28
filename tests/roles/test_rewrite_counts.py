"""Counts that the kernel's table has, and that begin anew with it."""

from __future__ import annotations

from collections import Counter

from scentd.roles.rewrite_counts import OUTCOME, RewriteCounts


class Told:
    """What a peer's traffic is told."""

    def __init__(self) -> None:
        self.packets: Counter[str] = Counter()

    def take_outcome(self, address: str, outcome: str, packets: int) -> None:
        assert outcome == OUTCOME == "unstamped:translated"
        self.packets[address] += packets


def test_counts_grow_and_begin_anew():
    told = Told()
    counts = RewriteCounts(told)
    for kernel in ({"10.1.0.2": 3}, {"10.1.0.2": 3, "fd00::2": 4}, {"10.1.0.2": 2}, {}, {"10.1.0.2": 1}):
        counts.take(Counter(kernel))
    assert told.packets == {"10.1.0.2": 6, "fd00::2": 4}
    assert counts.totals == {OUTCOME: 10}
