"""A kind of source: its section of the configuration and its reader, the running half, as readers.py uses it.

A reader's `read(now)` dates its samples with `now` (Unix seconds) and measures elapsed time on the monotonic
clock, so that a stepped clock does no harm. A reader that compares two readings returns no sample on the first. `read`
may block and must not be called on a thread with a running event loop (pyroute2's netlink sockets refuse that).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from scentd.config.sections import Source
from scentd.errors import ScentdError
from scentd.model import Sample, SecurityEvent, SourceState
from scentd.prefix import Prefix, PrefixMap


class CollectError(ScentdError):
    """A source gave no reading. The text names the source, the reason and the way out; other sources go on."""


class ByteCounter(Protocol):
    """Counts what the sockets of a cgroup receive and send (datapath/offload/applications.py). Raises HostError."""

    def read(self, directory: Path) -> tuple[int, int, int]:
        """(number of the cgroup, bytes received, bytes sent)."""

    def close(self) -> None:
        """May be called twice."""


def count_nothing() -> ByteCounter:
    raise CollectError("nothing here counts bytes of cgroups; take application out of source on this host")


class Setting(NamedTuple):
    """The facts that a reader gets besides its section."""

    own: Sequence[Prefix]  # the network's prefixes; empty: every address of this host
    on_alarm: Callable[[SecurityEvent], None]  # to be called on the loop's thread
    regions: PrefixMap[str] = PrefixMap()  # of destinations, by packed address
    count_bytes: Callable[[], ByteCounter] = count_nothing  # opens a counter, which the reader closes


class Reader:
    """The running half of one source; the base does nothing. `name` is for log lines and counters: bandwidth_eth0."""

    COUNTERS: ClassVar[tuple[str, ...]] = ()  # names that the totals contain even without such a source, at 0
    polled: ClassVar[bool] = True  # whether read() is called each interval
    name: str

    def counts(self) -> Mapping[str, int]:
        """Totals since this reader was made."""
        return {}

    async def start(self) -> None:
        """Open the sockets of this reader. Raises HostError."""

    async def close(self) -> None:
        """Close them. May be called twice."""

    def adopt(self, old: Reader) -> None:
        """Take over the events of the reader that had the same claim before a reload."""

    def read(self, now: float) -> list[Sample]:
        """Samples dated `now`. Raises CollectError."""
        return []

    def trouble(self) -> str:
        """Why a reader that is not polled does not work just now; "" if it does."""
        return ""

    def events(self, now: float, monotonic: float) -> list[SecurityEvent]:
        """The security events that have not ended."""
        return []


class ReaderState(NamedTuple):
    """How one source does."""

    name: str  # as in the names of its counters
    source: Source
    state: SourceState
    reason: str = ""  # why it is not fresh
    age: float | None = None  # seconds since its last reading; None: there has been none, or it is not polled


class SourceKind(NamedTuple):
    """One kind: its section of the configuration, and its reader."""

    section: type[Source]
    reader: Callable[[Any, Setting], Reader]
