"""Bandwidth of one application: bytes in and out of the sockets of its cgroup, which a BPF program counts.

The sockets of a slice, a service or a container, in whichever network namespace; not what it sends to itself or others
on its host (lo), nor what the host only forwards for a guest: that is the bandwidth of the guest's tap.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress

from scentd.collect.cgroup import UNIFIED, Cgroup, check_cgroup, reader_name
from scentd.collect.rate import Rates
from scentd.collect.source import ByteCounter, CollectError, Reader, Setting
from scentd.config.schema import check_positive
from scentd.config.sections import Source
from scentd.config.units import Bits
from scentd.errors import HostError
from scentd.model import Sample

log = logging.getLogger(__name__)


class ApplicationSource(Source, tag_field="kind", tag="application"):
    """Bits in and out of the sockets of a cgroup against a capacity (BPF program on the cgroup, v2)."""

    cgroup: str  # of a slice, a service, a container
    capacity: Bits  # per second, each way

    def scale(self) -> str:
        return f"{self.capacity:g} bit/s"

    def mistakes(self, path: str) -> list[str]:
        return check_cgroup(self.cgroup, path) + check_positive(self, path, "capacity")


class ApplicationReader(Reader):
    """Bits per second in and out since the last reading, as a share of the capacity."""

    def __init__(self, source: ApplicationSource, setting: Setting) -> None:
        self.name = reader_name("application", source.cgroup)
        self._source = source
        self._cgroup = Cgroup(source.cgroup)
        self._open = setting.count_bytes
        self._counter: ByteCounter | None = None
        # The key holds the cgroup's number: another one under the same name begins at 0.
        self._rates: Rates[tuple[int, str]] = Rates()

    async def start(self) -> None:
        self._counter = self._open()
        with suppress(CollectError):  # the first reading meets it, too, and tells
            await asyncio.to_thread(self._count, self._counter)

    async def close(self) -> None:
        if self._counter is None:
            return
        try:
            await asyncio.to_thread(self._counter.close)
        except HostError as error:
            log.error("application %s: %s", self._cgroup.name, error)

    def read(self, now: float) -> list[Sample]:
        source = self._source
        if self._counter is None:
            return []
        rates = self._rates.update(self._count(self._counter), time.monotonic())
        return [Sample(metric, min(rate * 8 / source.capacity, 1.0), now) for (_, metric), rate in rates.items()]

    def _count(self, counter: ByteCounter) -> dict[tuple[int, str], float]:
        """Bytes by (number of the cgroup, metric). Raises CollectError."""
        directory = self._cgroup.directory(UNIFIED)
        self._cgroup.identity(directory)  # tells best that it is not there
        try:
            number, received, sent = counter.read(directory.path)
        except HostError as error:
            raise CollectError(f"application {self._cgroup.name}: {error}") from None
        return {(number, "bandwidth_in"): float(received), (number, "bandwidth_out"): float(sent)}
