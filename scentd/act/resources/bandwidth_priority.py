"""Bandwidth by priority: who of the peers on a link gets first what others have left.

A peer with a higher number gets it first. Guarantees come before that, and ceilings hold (bandwidth.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from scentd.act.resources.bandwidth import ClassBackend, ShapedResource
from scentd.act.resources.htb import LAST
from scentd.act.resources.tc import HtbClass, Part

ABOVE_ALL = LAST + 1.0  # of a peer without a class: its packets pass before all others


class BandwidthPriority(ShapedResource, tag_field="kind", tag="bandwidth_priority", kw_only=True):
    """0 (last) to 7 (first)."""

    unit: ClassVar[str] = "of 7"

    maximum: float = float(LAST)

    def mistakes(self, path: str) -> list[str]:
        problems = super().mistakes(path)
        if self.maximum > LAST:
            problems.append(f"{path}.maximum: HTB knows 8 priorities; write 7 or less")
        return problems


class BandwidthPriorityBackend(ClassBackend[BandwidthPriority]):
    section = BandwidthPriority

    def part(self) -> Part:
        return "precedence"

    def value(self, amount: float) -> int:
        return LAST - round(min(max(amount, 0.0), float(LAST)))

    def amount(self, peer: str, one: HtbClass) -> float:
        return float(LAST - one.precedence)

    def without(self, peers: Iterable[str]) -> dict[str, float]:
        return dict.fromkeys(peers, ABOVE_ALL)
