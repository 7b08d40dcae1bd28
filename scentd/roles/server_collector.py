"""Asks one Prometheus server for all networks of this host, and publishes their Samples."""

from __future__ import annotations

import asyncio
import logging
import time

from scentd.bus.local import LocalBus
from scentd.collect.prometheus_server import ServerReader
from scentd.config.prometheus_server import PrometheusServer
from scentd.config.sections import Network
from scentd.control.status import PrometheusQueryStatus, PrometheusServerStatus
from scentd.model import Samples
from scentd.prefix import PrefixMap

log = logging.getLogger(__name__)


class ServerCollector:
    """Asks as often as the network with the shortest interval needs it, and publishes each network's own so often."""

    def __init__(self, server: PrometheusServer, networks: list[Network], bus: LocalBus) -> None:
        known = {n.name: PrefixMap((a, True) for a in n.addresses) if n.addresses else None for n in networks}
        self._server = server
        self._reader = ServerReader(server, known)
        self._bus = bus
        self._intervals = {n.name: n.interval for n in networks}
        self._interval = min(self._intervals.values())
        self._due = dict.fromkeys(self._intervals, 0.0)  # CLOCK_MONOTONIC
        self._task: asyncio.Task | None = None

    def begin(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._reader.close()

    def status(self) -> PrometheusServerStatus:
        return PrometheusServerStatus(
            name=self._server.name,
            queries=[
                PrometheusQueryStatus(
                    metric=query.metric,
                    why_not=query.why_not,
                    answered_at=query.answered_at,
                    seconds=round(query.seconds, 6),
                    samples=query.samples,
                    networks=query.networks,
                )
                for query in self._reader.queries
            ],
            counters=self._reader.counters(),
        )

    async def _run(self) -> None:
        while True:
            began = time.monotonic()
            try:
                await self._round(began)
            except Exception:  # telemetry must never stop the packet path; the next interval tries again
                log.exception("prometheus_server %s: no samples this time", self._server.name)
            await asyncio.sleep(max(0.0, began + self._interval - time.monotonic()))

    async def _round(self, began: float) -> None:
        found = await asyncio.to_thread(self._reader.read)
        at = time.time()
        for network, samples in found.items():
            # A network of a longer interval would make its epochs more often with each of our rounds.
            if self._due[network] <= began:
                self._due[network] = began + self._intervals[network] - self._interval / 2
                self._bus.publish(Samples(network, f"prometheus/{self._server.name}", at, tuple(samples)))
