"""Latency and jitter of this host's TCP connections, as the kernel measures them (inet_diag.py).

rttvar is the smoothed mean deviation of the round trip (RFC 6298, section 2).
Connections are weighted by the segments they moved since the last reading:
a thousand idle ones with an hour-old estimate do not drown the one in use.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from scentd.collect.source import Reader, Setting
from scentd.config.schema import check_positive
from scentd.config.sections import Source
from scentd.config.units import Seconds
from scentd.model import Sample

if TYPE_CHECKING:
    from scentd.collect.inet_diag import Connection


class TcpSource(Source, tag_field="kind", tag="tcp"):
    """Latency and jitter: rtt and rttvar of this host's TCP connections (inet_diag), weighted by traffic."""

    latency_full: Seconds = 0.2  # this round trip scores 1.0
    jitter_full: Seconds = 0.05

    def scale(self) -> str:
        return f"latency {self.latency_full * 1000:g} ms, jitter {self.jitter_full * 1000:g} ms"

    def mistakes(self, path: str) -> list[str]:
        return check_positive(self, path, "latency_full", "jitter_full")


class TcpReader(Reader):
    """Weighted mean round trip and its variation, as shares of the configured full scores."""

    name = "tcp"

    def __init__(self, source: TcpSource, _: Setting) -> None:
        self._source = source
        self._segments: dict[int, int] | None = None

    def read(self, now: float) -> list[Sample]:
        from scentd.collect.inet_diag import (
            established,
        )  # imports pyroute2, which a program that reads a configuration does not need

        connections = established()
        before, self._segments = self._segments, {c.cookie: c.segments for c in connections}
        if before is None:
            return []
        mean = weighted(connections, before)
        if mean is None:
            return []
        source = self._source
        return [
            Sample("latency", min(mean[0] / source.latency_full, 1.0), now),
            Sample("jitter", min(mean[1] / source.jitter_full, 1.0), now),
        ]


def weighted(connections: Iterable[Connection], before: dict[int, int]) -> tuple[float, float] | None:
    """Mean rtt and rttvar, seconds, weighted by segments moved since `before`; None if nothing moved."""
    total, rtt, rttvar = 0, 0.0, 0.0
    for connection in connections:
        moved = (connection.segments - before.get(connection.cookie, 0)) & 0xFFFFFFFF  # the kernel's counters wrap
        total += moved
        rtt += moved * connection.rtt
        rttvar += moved * connection.rttvar
    return (rtt / total, rttvar / total) if total else None
