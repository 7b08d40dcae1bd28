"""All sources of one network: read together, each failing alone."""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from scentd.collect import CollectError, Polled
from scentd.collect.eve import COUNTERS as EVE_COUNTERS
from scentd.collect.eve import Alerts
from scentd.collect.listen import Listener
from scentd.collect.nic import Bandwidth
from scentd.collect.proc import Cpu, Memory
from scentd.collect.prometheus import Prometheus
from scentd.collect.tcp_info import Tcp
from scentd.config import (
    BandwidthSource,
    CpuSource,
    EveSource,
    MemorySource,
    Network,
    PrometheusSource,
    Source,
    TcpSource,
    prefixes,
)
from scentd.model import Event, Sample

MAX_THREADS = 8

log = logging.getLogger(__name__)


class Collectors:
    """The sources of `network.collect`. Touches nothing before start() or the first read().

    On reload make new ones, `adopt` the old, start the new and close the old (or
    the other way round): a socket path that both use passes over without a gap.
    """

    def __init__(self, network: Network, on_alarm: Callable[[Event], None]) -> None:
        own = prefixes(network.addresses)
        self._polled = named([p for p in map(polled, network.collect) if p is not None])
        self._listeners = {
            source.socket: Listener(source, Alerts(source, own), on_alarm)
            for source in network.collect
            if isinstance(source, EveSource)
        }
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
            for listener in self._listeners.values():
                await listener.start()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the sockets and remove their files. Does not wait for a reading in progress. May be called twice."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        for listener in self._listeners.values():
            await listener.close()

    def adopt(self, old: Collectors) -> None:
        """Take over the events that `old` holds for the same sockets: a reload does not end an alarm."""
        for path, listener in self._listeners.items():
            if path in old._listeners:
                listener.alerts.adopt(old._listeners[path].alerts)

    def read(self, now: float) -> list[Sample]:
        """All samples, dated `now` (Unix seconds). Blocks up to half an interval; call it in a worker thread.

        A source that takes longer is not waited for: its samples come with a later
        reading, dated as they were asked for. Where several sources measure the
        same (two interfaces), the highest counts, as it is the bottleneck.
        """
        for name, source in self._polled.items():
            if name not in self._running and not self._closed:
                self._running[name] = self._pool.submit(source.read, now)
        wait(self._running.values(), timeout=self._patience)
        samples: list[Sample] = []
        for name, future in list(self._running.items()):
            if future.done():
                del self._running[name]
                samples += self._result(name, future)
            else:
                self._late[name] += 1
        return highest(samples)

    def events(self, now: float) -> list[Event]:
        """The events that have not ended at `now` (Unix seconds)."""
        monotonic = time.monotonic()
        return [e for listener in self._listeners.values() for e in listener.alerts.active(now, monotonic)]

    def counters(self) -> dict[str, int]:
        """Totals since these collectors were made; eve_* and prometheus_* are there, at 0, without such a source."""
        total: Counter[str] = Counter(dict.fromkeys([*EVE_COUNTERS, *Listener.COUNTERS, *Prometheus.COUNTERS], 0))
        for listener in self._listeners.values():
            total.update(listener.counters)
            total.update(listener.alerts.counters)
        for name, source in self._polled.items():
            total.update(getattr(source, "counters", {}))
            total[f"failures_{name}"] = self._failures[name]
            total[f"late_{name}"] = self._late[name]
        return dict(total)

    def _result(self, name: str, future: Future[list[Sample]]) -> list[Sample]:
        if future.cancelled():
            return []
        try:
            samples = future.result()
        except CollectError as error:
            self._failed(name, str(error))
            return []
        except Exception as error:  # a fault of ours; the other sources must go on, and somebody must hear of it
            self._failed(name, f"unexpected {error!r}; please report it", error)
            return []
        if name in self._failing:
            self._failing.discard(name)
            log.warning("collect %s: works again", name)
        return samples

    def _failed(self, name: str, reason: str, fault: Exception | None = None) -> None:
        self._failures[name] += 1
        if name not in self._failing:
            self._failing.add(name)
            log.warning("collect %s: %s (not repeated while it lasts)", name, reason, exc_info=fault)


def polled(source: Source) -> Polled | None:
    """The reader of a polled source, None for one that is listened to."""
    match source:
        case CpuSource():
            return Cpu(source)
        case MemorySource():
            return Memory(source)
        case BandwidthSource():
            return Bandwidth(source)
        case TcpSource():
            return Tcp(source)
        case PrometheusSource():
            return Prometheus(source)
    return None


def named(sources: Iterable[Polled]) -> dict[str, Polled]:
    """By a name of letters, digits and _ that is each source's own: cpu, bandwidth_eth0, bandwidth_eth0_2."""
    result: dict[str, Polled] = {}
    for source in sources:
        base = name = re.sub(r"\W", "_", source.name, flags=re.ASCII)
        number = 1
        while name in result:
            number += 1
            name = f"{base}_{number}"
        result[name] = source
    return result


def highest(samples: Iterable[Sample]) -> list[Sample]:
    """One sample for each metric, node and role."""
    result: dict[tuple[str, str, str], Sample] = {}
    for sample in samples:
        key = sample.metric, sample.node, sample.role
        if key not in result or sample.value > result[key].value:
            result[key] = sample
    return list(result.values())
