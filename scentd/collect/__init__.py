"""Telemetry in. One file a source; runner.py drives them.

A polled source has `read(now) -> list[Sample]`: `now` is Unix seconds and only
dates the samples; what needs an elapsed time measures it on the monotonic
clock, so that a stepped clock makes no nonsense. A source that compares two
readings gives nothing on the first. `read` may block and must not be called on
a thread with a running event loop (pyroute2's netlink sockets refuse that).
"""

from __future__ import annotations

from typing import Protocol

from scentd.errors import ScentdError
from scentd.model import Sample


class CollectError(ScentdError):
    """A source gave no reading: what, where, the way out. The other sources go on."""


class Polled(Protocol):
    name: str  # in log lines and counters: cpu, bandwidth_eth0 ...

    def read(self, now: float) -> list[Sample]:
        """Samples dated `now`. Raises CollectError."""
        ...
