"""Which edge of a cache a network is steered to, and whether that has brought the content closer. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar


class Edge(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def region(self) -> str: ...


E = TypeVar("E", bound=Edge)


def choose(edges: Sequence[E], hurting_regions: Sequence[str], round_trips: Mapping[str, float]) -> E | None:
    """Among the edges of a region that hurts (all, if none is known) the one with the shortest round trip.

    `round_trips` are seconds by the edge's name; an edge without one has not answered and is not chosen. Of equals the
    first by name counts.
    """
    there = [edge for edge in edges if not hurting_regions or serves(edge, hurting_regions)]
    answered = [edge for edge in there if edge.name in round_trips]
    return min(answered, key=lambda edge: (round_trips[edge.name], edge.name), default=None)


def serves(edge: Edge, regions: Sequence[str]) -> bool:
    return edge.region in regions


def is_closer(before: float, after: float, must_fall: float) -> bool:
    """Whether a time (seconds) has fallen by at least the share `must_fall`."""
    return after <= before * (1 - must_fall)
