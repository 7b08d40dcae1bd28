"""The running half of the profiler: one task per network that collects, scores, issues and hands on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from scentd import config as schema
from scentd import issue, score
from scentd.collect.runner import Collectors
from scentd.control.epochs import Epochs
from scentd.model import Event, Sample, Statement
from scentd.pairs import Pair
from scentd.tables import Outgoing
from scentd.wire import keys

log = logging.getLogger(__name__)

ISSUE_PAUSE = 1.0  # seconds at least between two epochs, however many alarms there are: epochs are seconds


class Profiler:
    """Issues one network's profiles.

    `publish(outgoing)` gets what the stampers need; `report(event, fields)` is told of every epoch.
    """

    def __init__(
        self,
        network: schema.Network,
        identity: keys.Identity,
        pairs: Sequence[Pair],
        publish: Callable[[list[Outgoing]], None],
        report: Callable[[str, dict], None],
    ) -> None:
        self.network = network
        self.statement: Statement | None = None
        self.epoch = 0
        self.issued = 0
        self.refused = 0  # profiles of ours that did not verify
        self.collectors = Collectors(network, self._on_alarm)
        self.serve(identity, pairs)
        self._publish = publish
        self._report = report
        self._alarm = asyncio.Event()
        self._task: asyncio.Task | None = None

    async def open(self, before: Profiler | None = None) -> None:
        """Open the sources; `before` is the one this replaces at a reload. Raises HostError."""
        if before is not None:
            self.collectors.adopt(before.collectors)
        await self.collectors.start()

    def begin(self, epochs: Epochs, slot: bytes) -> None:
        """Issue from now on, from the sources that are open."""
        self._task = asyncio.create_task(self._run(epochs, slot))

    def serve(self, identity: keys.Identity, pairs: Sequence[Pair]) -> None:
        """Issue for these pairs from the next epoch on."""
        self._issuer = issue.Issuer(identity, [p.issued for p in pairs], issue.metric_slots(self.network.metrics))

    async def pause(self) -> None:
        """Issue nothing more; the sources stay open."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def stop(self) -> None:
        await self.pause()
        await self.collectors.close()

    def _on_alarm(self, event: Event) -> None:
        self._report("alarm", {"network": self.network.name, "kind": event.kind, "node": event.node})
        self._alarm.set()

    async def _run(self, epochs: Epochs, slot: bytes) -> None:
        """Collect every interval; an alarm is told at once, with the samples at hand."""
        await asyncio.to_thread(self.collectors.read, time.time())  # rates need a first reading
        await asyncio.sleep(min(0.5, self.network.interval / 4))
        samples: list[Sample] = []
        due = time.monotonic()
        while True:
            alarmed = self._alarm.is_set()
            self._alarm.clear()
            if not alarmed:
                samples = await asyncio.to_thread(self.collectors.read, time.time())
                due = max(due + self.network.interval, time.monotonic())
            try:
                self._issue(samples, epochs, slot, alarmed)
            except Exception:  # telemetry must never stop the datapath; the next interval tries again
                log.exception("network %s: no profile this time", self.network.name)
            await asyncio.sleep(ISSUE_PAUSE)
            try:
                await asyncio.wait_for(self._alarm.wait(), max(0.0, due - time.monotonic()))
            except TimeoutError:
                continue

    def _issue(self, samples: Sequence[Sample], epochs: Epochs, slot: bytes, alarmed: bool) -> None:
        now = time.time()
        statement = score.statement(self.network, samples, self.collectors.events(now), now)
        epoch = issue.next_epoch(now, epochs.epoch(slot))
        if epoch > now + 5:
            log.warning(
                "network %s: the clock is %d s behind the last epoch issued, and peers refuse epochs ahead of their "
                "clocks; if the clock was wrong before, wait so long or make a new key",
                self.network.name,
                epoch - now,
            )
        epochs.set_epoch(slot, epoch)  # before it is used: an epoch is a nonce
        outgoing = self._issuer.issue(statement, epoch)
        sound = [o for o in outgoing if self._issuer.verified(o)]
        if len(sound) < len(outgoing):
            self.refused += len(outgoing) - len(sound)
            log.error("network %s: a profile of our own does not verify; it is not sent", self.network.name)
        self.statement, self.epoch = statement, epoch
        self.issued += 1
        self._publish(sound)
        self._report("epoch", self.describe() | {"alarm": alarmed})

    def describe(self) -> dict:
        """For status and monitor."""
        made = self.statement
        return {
            "network": self.network.name,
            "epoch": self.epoch,
            "issued": self.issued,
            "refused": self.refused,
            "interval": self.network.interval,
            "overall": None if made is None else made.overall,
            "levels": {} if made is None else dict(sorted(made.levels.items())),
            "items": [] if made is None else sorted(made.items),
            "affected": [] if made is None else sorted(map(str, made.affected)),
        }
