"""Latency, jitter and retransmits of this host's TCP connections, as the kernel measures them (inet_diag.py).

    latency     = mean rtt / latency_full
    jitter      = mean rttvar / jitter_full: the smoothed mean deviation of the round trip (RFC 6298, section 2)
    retransmits = bytes sent again / bytes sent since the last reading / retransmits_full

The means are weighted by the segments that a connection moved since the last reading: a thousand idle ones with an
hour-old estimate do not drown the one in use. All three are of all connections together, and once more of each region
to which connections lead (network.regions).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scentd.collect.source import Reader, Setting
from scentd.config.schema import check_positive
from scentd.config.sections import Source
from scentd.config.units import Seconds
from scentd.model import Sample
from scentd.prefix import PrefixMap

if TYPE_CHECKING:
    from scentd.collect.inet_diag import Connection

# Bytes. Shares are of at least so many, or a lost packet of a quiet connection would be a full level.
LEAST_SENT = 64 * 1024


class TcpSource(Source, tag_field="kind", tag="tcp"):
    """Latency, jitter and retransmits of this host's TCP connections (inet_diag), weighted by traffic."""

    latency_full: Seconds = 0.2  # this round trip scores 1.0
    jitter_full: Seconds = 0.05
    retransmits_full: float = 0.05  # this share of the bytes sent again scores 1.0

    def scale(self) -> str:
        latency, jitter = (f"{seconds * 1000:g} ms" for seconds in (self.latency_full, self.jitter_full))
        return f"latency {latency}, jitter {jitter}, retransmits {self.retransmits_full:.0%} of the bytes"

    def mistakes(self, path: str) -> list[str]:
        return check_positive(self, path, "latency_full", "jitter_full", "retransmits_full")


class TcpReader(Reader):
    """Readings of all connections and of each region, as shares of the configured full scores."""

    name = "tcp"

    def __init__(self, source: TcpSource, setting: Setting) -> None:
        self._source = source
        self._regions = setting.regions
        self._before: dict[int, Connection] | None = None

    def read(self, now: float) -> list[Sample]:
        from scentd.collect.inet_diag import (
            established,
        )  # imports pyroute2, which a program that reads a configuration does not need

        connections = established()
        before, self._before = self._before, {c.cookie: c for c in connections}
        if before is None:
            return []
        source = self._source
        return [
            Sample(metric, min(value / full, 1.0), now, region=region)
            for region, moved in totals(connections, before, self._regions).items()
            if moved.segments
            for metric, value, full in (
                ("latency", moved.rtt / moved.segments, source.latency_full),
                ("jitter", moved.rttvar / moved.segments, source.jitter_full),
                ("retransmits", moved.share_sent_again, source.retransmits_full),
            )
        ]


@dataclass(slots=True)
class Moved:
    """What connections have moved since the reading before; round trips are sums, a segment one summand."""

    segments: int = 0
    rtt: float = 0.0  # seconds
    rttvar: float = 0.0
    sent: int = 0  # bytes
    sent_again: int = 0

    def add(self, connection: Connection, before: Connection | None) -> None:
        old = (before.segments, before.sent, before.sent_again) if before is not None else (0, 0, 0)
        segments = (connection.segments - old[0]) & 0xFFFFFFFF  # the kernel's counters wrap
        self.segments += segments
        self.rtt += segments * connection.rtt
        self.rttvar += segments * connection.rttvar
        self.sent += connection.sent - old[1]
        self.sent_again += connection.sent_again - old[2]

    @property
    def share_sent_again(self) -> float:
        return self.sent_again / max(self.sent, LEAST_SENT)


def totals(
    connections: Iterable[Connection], before: Mapping[int, Connection], regions: PrefixMap[str]
) -> dict[str, Moved]:
    """By region, and under "" of all connections, what has moved since `before` (by cookie)."""
    result = {"": Moved()}
    for connection in connections:
        old = before.get(connection.cookie)
        result[""].add(connection, old)
        region = regions.get(connection.destination)
        if region is not None:
            result.setdefault(region, Moved()).add(connection, old)
    return result
