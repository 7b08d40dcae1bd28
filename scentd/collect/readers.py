"""All sources of one network: read together, each failing alone."""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from scentd.collect import SOURCES
from scentd.collect.source import CollectError, Reader, Setting
from scentd.config.schema import kind_of
from scentd.config.sections import Network
from scentd.model import EventReport, Sample, SecurityEvent
from scentd.prefix import prefixes

MAX_THREADS = 8

log = logging.getLogger(__name__)


class Readers:
    """The readers of `network.source`. Touches nothing before start() or the first read().

    On reload make new ones, `adopt` the old, start the new and close the old (or
    the other way round): a socket path that both use is served without a gap.
    """

    def __init__(self, network: Network, on_alarm: Callable[[SecurityEvent], None]) -> None:
        setting = Setting(prefixes(network.addresses), on_alarm)
        pairs = [(source, SOURCES[kind_of(source)].reader(source, setting)) for source in network.source]
        self._readers = [reader for _, reader in pairs]
        self._polled = by_unique_name(reader for reader in self._readers if reader.polled)
        self._by_source = {(kind_of(source), same): reader for source, reader in pairs if (same := source.same())}
        self._patience = network.interval / 2
        self._pool = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix=f"collect-{network.name}")
        self._running: dict[str, Future[list[Sample]]] = {}
        self._failing: set[str] = set()
        self._failures: Counter[str] = Counter()
        self._late: Counter[str] = Counter()
        self._closed = False

    async def start(self) -> None:
        """Open the sockets on the running loop. Raises HostError; those already open are closed again."""
        try:
            for reader in self._readers:
                await reader.start()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the sockets and remove their files. Does not wait for a reading in progress. May be called twice."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        for reader in self._readers:
            await reader.close()

    def adopt(self, old: Readers) -> None:
        """Take over the events of the same sources of `old`, so that a reload does not end an alarm."""
        for source, reader in self._by_source.items():
            before = old._by_source.get(source)
            if before is not None:
                reader.adopt(before)

    def read(self, now: float) -> list[Sample]:
        """All samples, dated `now` (Unix seconds). Blocks up to half an interval; call it in a worker thread.

        The call does not wait for a slower source: its samples come with a later
        reading, with the date of their request. Where several sources measure the
        same (two interfaces), the highest counts, as it is the bottleneck.
        """
        for name, reader in self._polled.items():
            if name not in self._running and not self._closed:
                self._running[name] = self._pool.submit(reader.read, now)
        wait(self._running.values(), timeout=self._patience)
        samples: list[Sample] = []
        for name, future in list(self._running.items()):
            if future.done():
                del self._running[name]
                samples += self._result(name, future)
            else:
                self._late[name] += 1
        return highest_samples(samples)

    def events(self, now: float) -> list[SecurityEvent]:
        """The events that have not ended at `now` (Unix seconds)."""
        monotonic = time.monotonic()
        return [event for reader in self._readers for event in reader.events(now, monotonic)]

    def report(self, said: EventReport, now: float) -> tuple[SecurityEvent, bool] | None:
        """Take what `scentd event` says: the event, and whether it begins. None without a source that takes reports.

        Raises CollectError.
        """
        return next((taken for reader in self._readers if (taken := reader.report(said, now))), None)

    def counters(self) -> dict[str, int]:
        """Totals since these readers were made. A kind's own counters are listed even without such a source, at 0."""
        names = (name for kind in SOURCES.values() for name in getattr(kind.reader, "COUNTERS", ()))
        total: Counter[str] = Counter(dict.fromkeys(names, 0))
        for reader in self._readers:
            total.update(reader.counts())
        for name in self._polled:
            total[f"failures_{name}"] = self._failures[name]
            total[f"late_{name}"] = self._late[name]
        return dict(total)

    def _result(self, name: str, future: Future[list[Sample]]) -> list[Sample]:
        if future.cancelled():
            return []
        try:
            samples = future.result()
        except CollectError as error:
            self._count_failure(name, str(error))
            return []
        except Exception as error:  # a defect: log it, and let the other sources go on
            self._count_failure(name, f"unexpected {error!r}; please report it", error)
            return []
        if name in self._failing:
            self._failing.discard(name)
            log.warning("source %s: works again", name)
        return samples

    def _count_failure(self, name: str, reason: str, fault: Exception | None = None) -> None:
        self._failures[name] += 1
        if name not in self._failing:
            self._failing.add(name)
            log.warning("source %s: %s (not repeated while it lasts)", name, reason, exc_info=fault)


def by_unique_name(readers: Iterable[Reader]) -> dict[str, Reader]:
    """Readers by a unique name of letters, digits and _: cpu, bandwidth_eth0, bandwidth_eth0_2."""
    result: dict[str, Reader] = {}
    for reader in readers:
        base = name = re.sub(r"\W", "_", reader.name, flags=re.ASCII)
        number = 1
        while name in result:
            number += 1
            name = f"{base}_{number}"
        result[name] = reader
    return result


def highest_samples(samples: Iterable[Sample]) -> list[Sample]:
    """One sample for each metric, node and role."""
    result: dict[tuple[str, str, str], Sample] = {}
    for sample in samples:
        key = sample.metric, sample.node, sample.role
        if key not in result or sample.value > result[key].value:
            result[key] = sample
    return list(result.values())
