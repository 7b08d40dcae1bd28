"""What a kind of source is, and what its running half looks like to readers.py.

A reader's `read(now)` dates its samples with `now` (Unix seconds) and measures elapsed time on the monotonic
clock, so that a stepped clock makes no nonsense. One that compares two readings gives nothing on the first. `read`
may block and must not be called on a thread with a running event loop (pyroute2's netlink sockets refuse that).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from scentd.config.sections import Source
from scentd.errors import ScentdError
from scentd.model import Sample, SecurityEvent
from scentd.prefix import Prefix


class CollectError(ScentdError):
    """A source gave no reading: what, where, the way out. The other sources go on."""


class Setting(NamedTuple):
    """What a reader may know besides its section."""

    own: Sequence[Prefix]  # the network's prefixes; empty: every address of this host
    on_alarm: Callable[[SecurityEvent], None]  # to be called on the loop's thread


class Reader:
    """The running half of one source; the base does nothing. `name` is for log lines and counters: bandwidth_eth0."""

    COUNTERS: ClassVar[tuple[str, ...]] = ()  # names that are in the totals, at 0, without such a source, too
    polled: ClassVar[bool] = True  # read() is to be called each interval
    name: str

    def counts(self) -> Mapping[str, int]:
        """Totals since it was made."""
        return {}

    async def start(self) -> None:
        """Open what it listens on. Raises HostError."""

    async def close(self) -> None:
        """Let go of it. May be called twice."""

    def adopt(self, old: Reader) -> None:
        """Go on with what the reader of the same claim held before a reload."""

    def read(self, now: float) -> list[Sample]:
        """Samples dated `now`. Raises CollectError."""
        return []

    def events(self, now: float, monotonic: float) -> list[SecurityEvent]:
        """The security events that have not ended."""
        return []


class SourceKind(NamedTuple):
    """One kind: its section of the configuration, and what reads it."""

    section: type[Source]
    reader: Callable[[Any, Setting], Reader]
