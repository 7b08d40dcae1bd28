"""All sources of one network: read together, each failing alone."""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from math import isfinite

from scentd.collect import SOURCES
from scentd.collect.source import ByteCounter, CollectError, Reader, ReaderState, Setting, count_nothing
from scentd.config.regions import region_map
from scentd.config.schema import kind_of
from scentd.config.sections import Network, Source
from scentd.model import Sample, SecurityEvent
from scentd.prefix import prefixes

MAX_THREADS = 8

log = logging.getLogger(__name__)


class Readers:
    """The readers of `network.source`. Touches nothing before start() or the first read().

    On reload make new ones, `adopt` the old, start the new and close the old (or
    the other way round): a socket path that both use is served without a gap.
    """

    def __init__(
        self,
        network: Network,
        on_alarm: Callable[[SecurityEvent], None],
        count_bytes: Callable[[], ByteCounter] = count_nothing,
    ) -> None:
        setting = Setting(prefixes(network.addresses), on_alarm, region_map(network.regions), count_bytes)
        pairs = [(source, make_reader(source, setting)) for source in network.source]
        self._pairs = pairs
        self._readers = [reader for _, reader in pairs]
        polled = by_unique_name((source, reader) for source, reader in pairs if reader.polled)
        self._polled = {name: reader for name, (_, reader) in polled.items()}
        self._source_of = {name: source for name, (source, _) in polled.items()}
        self._by_claim = {claim: reader for source, reader in pairs if (claim := source.claim())}
        self._patience = network.interval / 2
        self._pool = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix=f"collect-{network.name}")
        self._running: dict[str, Future[list[Sample]]] = {}
        self._failing: dict[str, str] = {}  # the reason, by name
        self._read_at: dict[str, float] = {}  # CLOCK_MONOTONIC: when the last reading came that did not fail
        self._odd: dict[str, str] = {}  # what is wrong with the samples of that reading
        self._stale_after = network.staleness
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
        """Take over the events of `old` for the same claims, so that a reload does not end an alarm."""
        for claim, reader in self._by_claim.items():
            before = old._by_claim.get(claim)
            if type(before) is type(reader):
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
                source = self._source_of[name]
                samples += [of_source(sample, source) for sample in self._result(name, future)]
            else:
                self._late[name] += 1
        return highest_samples(samples)

    def events(self, now: float) -> list[SecurityEvent]:
        """The events that have not ended at `now` (Unix seconds)."""
        monotonic = time.monotonic()
        return [named(event, source) for source, reader in self._pairs for event in reader.events(now, monotonic)]

    def states(self) -> list[ReaderState]:
        """How each source does."""
        monotonic = time.monotonic()
        told = by_unique_name((source, reader) for source, reader in self._pairs if not reader.polled)
        return [self._state(name, source, monotonic) for name, source in self._source_of.items()] + [
            ReaderState(name, source, "failing" if (why := reader.trouble()) else "fresh", why)
            for name, (source, reader) in told.items()
        ]

    def _state(self, name: str, source: Source, monotonic: float) -> ReaderState:
        at = self._read_at.get(name)
        age = None if at is None else monotonic - at
        if name in self._failing:
            return ReaderState(name, source, "failing", self._failing[name], age)
        if age is None:
            return ReaderState(name, source, "stale", "no reading yet")
        if age >= self._stale_after:
            return ReaderState(name, source, "stale", f"no answer for {age:.0f} s", age)
        return ReaderState(name, source, "suspect" if self._odd[name] else "fresh", self._odd[name], age)

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
        self._read_at[name] = time.monotonic()
        self._odd[name] = next((reason for sample in samples if (reason := oddity(sample))), "")
        if self._failing.pop(name, None) is not None:
            log.warning("source %s: works again", name)
        return samples

    def _count_failure(self, name: str, reason: str, fault: Exception | None = None) -> None:
        self._failures[name] += 1
        if name not in self._failing:
            log.warning("source %s: %s (not repeated while it lasts)", name, reason, exc_info=fault)
        self._failing[name] = reason


def oddity(sample: Sample) -> str:
    """What is wrong with a sample; "" if nothing is."""
    if not isfinite(sample.value):
        return f"{sample.metric} is not a number"
    return "" if 0.0 <= sample.value <= 1.0 else f"{sample.metric} is {sample.value:g}, out of 0 to 1"


def make_reader(source: Source, setting: Setting) -> Reader:
    own = setting._replace(on_alarm=lambda event: setting.on_alarm(named(event, source)))
    return SOURCES[kind_of(source)].reader(source, own)


def of_source(sample: Sample, source: Source) -> Sample:
    """The sample with the source's node and role where the reader has named none."""
    node, role = sample.node or source.node, sample.role or source.role
    return sample if (node, role) == (sample.node, sample.role) else replace(sample, node=node, role=role)


def named(event: SecurityEvent, source: Source) -> SecurityEvent:
    """The event with the source's node where it names none."""
    node = event.node or source.events_node()
    return event if node == event.node else replace(event, node=node)


def by_unique_name(readers: Iterable[tuple[Source, Reader]]) -> dict[str, tuple[Source, Reader]]:
    """By a unique name of letters, digits and _: cpu, bandwidth_eth0, bandwidth_eth0_2, cpu_10_0_0_5 of a node."""
    result: dict[str, tuple[Source, Reader]] = {}
    for source, reader in readers:
        text = f"{reader.name}_{source.node}" if source.node else reader.name
        base = name = re.sub(r"\W", "_", text, flags=re.ASCII)
        number = 1
        while name in result:
            number += 1
            name = f"{base}_{number}"
        result[name] = source, reader
    return result


def highest_samples(samples: Iterable[Sample]) -> list[Sample]:
    """One sample for each metric, node, role and region."""
    result: dict[tuple[str, str, str, str], Sample] = {}
    for sample in samples:
        key = sample.metric, sample.node, sample.role, sample.region
        if key not in result or sample.value > result[key].value:
            result[key] = sample
    return list(result.values())
