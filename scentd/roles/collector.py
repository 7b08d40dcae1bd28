"""The collector: reads the sources of networks on this host and publishes Samples. It holds no key."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from scentd.bus.local import LocalBus
from scentd.collect.readers import Readers
from scentd.collect.source import ByteCounter, ReaderState, count_nothing
from scentd.config.schema import kind_of
from scentd.config.sections import Config, Network
from scentd.control.status import PrometheusServerStatus, SourceStatus
from scentd.datapath.offload.applications import Applications
from scentd.errors import HostError, ScentdError
from scentd.model import SCHEMA, EventReport, Notice, Samples, SecurityEvent
from scentd.roles.server_collector import ServerCollector
from scentd.system.loop_task import LoopTask

log = logging.getLogger(__name__)


class CollectorRole:
    """A collector for each network that has sources here, and for each Prometheus server. `name` is unique among a
    network's collectors.

    `pin_dir`: datapath.pin_dir, where the program that counts bytes of applications is kept; "": nothing counts them.
    """

    def __init__(self, bus: LocalBus, name: str = "", pin_dir: str = "") -> None:
        self._bus = bus
        self._applications = Applications(pin_dir) if pin_dir else None
        self._count_bytes = self._applications.open if self._applications else count_nothing
        self._name = name
        self._collectors: dict[str, NetworkCollector] = {}
        self._servers: list[ServerCollector] = []

    async def replace(self, config: Config) -> list[str]:
        """Serve this configuration, and return what did not work.

        A network whose new sources cannot be opened keeps its old ones, if it had any.
        """
        old, self._collectors = self._collectors, {}
        problems: list[str] = []
        for network in config.network:
            if not network.source:
                continue
            collector = NetworkCollector(network, self._name, self._bus, self._count_bytes)
            try:
                await collector.open(old.get(network.name))
            except ScentdError as error:
                await collector.stop()
                before = old.pop(network.name, None)
                problems.append(f"network {network.name}: {error}" + ("; its old sources stay" if before else ""))
                if before is None:
                    continue
                collector = before
            self._collectors[network.name] = collector
            collector.begin()
        for unused in old.values():
            await unused.stop()
        for server in self._servers:
            await server.stop()
        self._servers = [ServerCollector(s, config.network, self._bus) for s in config.prometheus_server]
        for server in self._servers:
            server.begin()
        if self._applications is not None:
            try:
                await asyncio.to_thread(self._applications.sweep)
            except ScentdError as error:  # of an earlier daemon or configuration: no reason to refuse this one
                log.error("%s", error)
        return problems

    async def stop(self) -> None:
        for collector in self._collectors.values():
            await collector.stop()
        for server in self._servers:
            await server.stop()

    def servers(self) -> list[PrometheusServerStatus]:
        return [server.status() for server in self._servers]

    def report(self, said: EventReport) -> dict[str, object]:
        """Take what `scentd event` says, and say what became of it. Raises HostError, CollectError."""
        if said.network not in self._collectors:
            known = ", ".join(self._collectors) or "none"
            raise HostError(f"no network {said.network!r} has sources here; those that have: {known}")
        taken = self._collectors[said.network].readers.report(said, time.time())
        if taken is None:
            way_out = 'give it a [[network.source]] with kind = "event"'
            raise HostError(f"network {said.network} takes no reports; {way_out}")
        event, begins = taken
        fields = {"network": said.network, "kind": event.kind, "node": event.node, "severity": event.severity}
        return {"schema": SCHEMA, **fields, "until": event.until, "begins": begins}

    def counters(self, network: str) -> dict[str, int]:
        """The counters of a network's sources on this host."""
        collector = self._collectors.get(network)
        return {} if collector is None else collector.readers.counters()

    def status(self, network: str) -> tuple[dict[str, int], list[SourceStatus]]:
        """The counters of a network's sources on this host, and how each does."""
        collector = self._collectors.get(network)
        sources = [] if collector is None else [source_status(reader) for reader in collector.readers.states()]
        return self.counters(network), sources


def source_status(reader: ReaderState) -> SourceStatus:
    return SourceStatus(
        name=reader.name,
        kind=kind_of(reader.source),
        node=reader.source.node,
        role=reader.source.role,
        state=reader.state,
        reason=reader.reason,
        age=reader.age,
        scale=reader.source.scale(),
    )


class NetworkCollector:
    """Reads one network's sources every interval. Publishes an alarm at once, with the newest samples."""

    def __init__(self, network: Network, name: str, bus: LocalBus, count_bytes: Callable[[], ByteCounter]) -> None:
        self.network = network
        self.readers = Readers(network, self._on_alarm, count_bytes)
        self._name = name
        self._bus = bus
        self._newest: Samples | None = None
        self._task = LoopTask(self._run)

    async def open(self, before: NetworkCollector | None = None) -> None:
        """Open the sources; `before` is the collector that this one replaces at a reload. Raises HostError."""
        if before is not None:
            self.readers.adopt(before.readers)
        await self.readers.start()

    def begin(self) -> None:
        """Start to read, unless this collector reads already."""
        self._task.begin()

    async def stop(self) -> None:
        await self._task.end()
        await self.readers.close()

    async def _run(self) -> None:
        await asyncio.to_thread(self.readers.read, time.time())  # rates need a first reading
        await asyncio.sleep(min(0.5, self.network.interval / 4))
        due = time.monotonic()
        while True:
            try:
                samples = await asyncio.to_thread(self.readers.read, time.time())
                self._publish(replace(self._without_readings(), samples=tuple(samples)))
            except Exception:  # telemetry must never stop the packet path; the next interval tries again
                log.exception("network %s: no samples this time", self.network.name)
            due = max(due + self.network.interval, time.monotonic())
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    def _without_readings(self) -> Samples:
        """Samples of now, without the readings themselves."""
        now = time.time()
        return Samples(
            network=self.network.name,
            collector=self._name,
            at=now,
            events=tuple(self.readers.events(now)),
            watched=any(source.reports_events for source in self.network.source),
        )

    def _on_alarm(self, event: SecurityEvent) -> None:
        told = {"kind": event.kind, "node": event.node, "severity": event.severity, "detail": event.detail}
        self._bus.publish(Notice("alarm", {"network": self.network.name, **told}))
        samples = self._newest.samples if self._newest is not None else ()
        self._publish(replace(self._without_readings(), samples=samples, alarm=True))

    def _publish(self, samples: Samples) -> None:
        self._newest = samples
        self._bus.publish(samples)
