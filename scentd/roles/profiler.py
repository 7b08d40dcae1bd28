"""The profiler: makes signed epochs of the Samples of one or many collectors. It holds the private keys."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence

from scentd.bus.local import LocalBus
from scentd.config.sections import Config, Network
from scentd.control.status import (
    STATES,
    NetworkStatus,
    ProfileExplanation,
    SourceStatus,
    count_names,
    limit_list,
)
from scentd.core.pairs import Pairs
from scentd.core.profile import issue, score
from scentd.core.profile.account import Inputs, account
from scentd.core.profile.issue import IssuedPair, Issuer, metric_slots
from scentd.core.profile.roll import Roll
from scentd.model import IssuedEpoch, Notice, Outgoing, Samples, Statement
from scentd.roles.node_log import NodeLog
from scentd.state.epochs import Epochs
from scentd.state.slots import issued_slot
from scentd.wire import keys

log = logging.getLogger(__name__)

BUILT = 1_793_491_200  # 1 November 2026: a clock before this is wrong, and what it issues would be refused
ISSUE_PAUSE = 1.0  # least seconds between two epochs: an epoch is a second; issue.early_wait() is for alarms
PATIENCE = 1.5  # intervals after the last epoch; then the next is made without late collectors


class ProfilerRole:
    """A profiler for each network that this host signs for: takes Samples, publishes an IssuedEpoch for each epoch."""

    def __init__(self, bus: LocalBus) -> None:
        self._bus = bus
        self._profilers: dict[str, NetworkProfiler] = {}
        self._collected: set[str] = set()  # networks of this host: what is not signed here, another host signs
        self.unknown_network = 0  # Samples of networks that are not signed here
        self.gate: Callable[[str], bool] = lambda _: True  # whether a network is this host's to issue now
        self._epochs: Epochs | None = None
        bus.subscribe(Samples, self._on_samples)

    async def replace(self, config: Config, pairs: Pairs, epochs: Epochs, before: Epochs | None = None) -> None:
        """Serve this configuration.

        The old profilers stop before the new ones begin, so that no epoch is used
        twice. `before` is the epoch file in use until now.
        """
        old, self._profilers = self._profilers, {}
        self._collected = set()
        for profiler in old.values():
            await profiler.stop()
        if before is not None:
            epochs.raise_to(before)
        self._epochs = epochs
        for network in config.network:
            self._collected.add(network.name)
            if network.signs:
                identity = pairs.identities[network.name][0]
                issued = pairs.issued_pairs(network.name)
                profiler = NetworkProfiler(
                    network, identity, issued, self._bus, self._may_issue, config.verify.max_future
                )
                if network.name in old:
                    profiler.adopt(old[network.name])
                profiler.begin(epochs, issued_slot(network.name))
                self._profilers[network.name] = profiler

    async def stop(self) -> None:
        for profiler in self._profilers.values():
            await profiler.stop()

    def raise_epoch(self, network: str, epoch: int) -> None:
        """Another profiler has issued this epoch: the next one here is a later one."""
        profiler = self._profilers.get(network)
        if profiler is not None and self._epochs is not None and epoch <= time.time() + profiler.max_future:
            slot = issued_slot(network)
            self._epochs.set_epoch(slot, max(epoch, self._epochs.epoch(slot)))

    def hurry(self) -> None:
        """Issue new epochs at once: the last ones are of another time, or of another profiler."""
        for profiler in self._profilers.values():
            profiler.hurry()

    def has_issued(self) -> bool:
        """Whether every network that is signed here has an epoch."""
        return all(profiler.issued for name, profiler in self._profilers.items() if self.gate(name))

    async def explain(self, network: str) -> ProfileExplanation | None:
        """How the network's last profile came about; None if none was issued here."""
        profiler = self._profilers.get(network)
        return await profiler.explain() if profiler is not None else None

    def status(
        self,
        network: Network,
        key_ids: tuple[str, str],
        collectors: dict[str, int],
        sources: Sequence[SourceStatus] = (),
        limit: int = 0,
    ) -> NetworkStatus:
        """`limit`: of nodes and sources that are listed, the worst first; 0: all."""
        profiler = self._profilers.get(network.name)
        statement = profiler.statement if profiler is not None else None
        nodes = profiler.roll.nodes(time.time()) if profiler is not None else []
        return NetworkStatus(
            name=network.name,
            key_id=key_ids[0],
            next_key_id=key_ids[1],
            signs=network.signs,
            stamps=network.stamps,
            collectors=collectors,
            sources=limit_list(sources, limit, lambda source: STATES.index(source.state))[0],
            source_states=count_names(source.state for source in sources),
            nodes=limit_list(nodes, limit, lambda node: STATES.index(node.state))[0],
            node_states=count_names(node.state for node in nodes),
            intake=profiler.intake() if profiler is not None else {},
            epoch=profiler.epoch if profiler is not None else 0,
            issued=profiler.issued if profiler is not None else 0,
            refused=profiler.refused if profiler is not None else 0,
            voided=profiler.voided if profiler is not None else 0,
            interval=network.interval,
            **({} if statement is None else statement_fields(statement)),
        )

    def _may_issue(self, network: str) -> bool:
        return self.gate(network)

    def _on_samples(self, samples: Samples) -> None:
        profiler = self._profilers.get(samples.network)
        if profiler is not None:
            profiler.take(samples)
        elif samples.network not in self._collected:
            self.unknown_network += 1


class NetworkProfiler:
    """Issues one network's epochs: when all its collectors have sent new Samples, or after PATIENCE at the latest."""

    def __init__(
        self,
        network: Network,
        identity: keys.Identity,
        pairs: Sequence[IssuedPair],
        bus: LocalBus,
        may_issue: Callable[[str], bool],
        max_future: float = 10.0,
    ) -> None:
        """`may_issue`: whether a network is this host's to issue now. `max_future`: seconds by which receivers take
        epochs that are ahead of their clocks.
        """
        self.network = network
        self._may_issue = may_issue
        self.max_future = max_future
        self._clock_told = False  # that the clock is wrong
        self.statement: Statement | None = None
        self.epoch = 0
        self.issued = 0
        self.refused = 0  # own profiles that did not verify
        self.voided = 0  # epochs of a wrong clock that were given up
        self._issuer = Issuer(identity, pairs, metric_slots(network.metrics))
        self._bus = bus
        self.roll = Roll(network, time.time())
        self._inputs: Inputs | None = None  # of the statement
        self._nodes = NodeLog(network.name)
        self._waiting: set[str] = set()  # collectors without Samples since the last epoch
        self._alarmed = asyncio.Event()  # an alarm is to be issued
        self._ready = asyncio.Event()
        self._issued_at = float("-inf")  # CLOCK_MONOTONIC
        self._task: asyncio.Task | None = None

    def adopt(self, old: NetworkProfiler) -> None:
        """Take over the old profiler's Samples, statement and counts. New keys are used after the pause."""
        self.roll.adopt(old.roll)
        self._inputs, self._nodes = old._inputs, old._nodes
        self._waiting, self._issued_at = old._waiting, old._issued_at
        self.statement, self.epoch, self.issued, self.refused = old.statement, old.epoch, old.issued, old.refused
        self.voided = old.voided
        if old._alarmed.is_set():
            self._alarmed.set()
            self._ready.set()
        if self.roll.collectors(time.time()) and self._issuer.key_ids != old._issuer.key_ids:
            self._ready.set()

    def hurry(self) -> None:
        """Issue an epoch as soon as the pause allows."""
        self._ready.set()

    def begin(self, epochs: Epochs, slot: bytes) -> None:
        self._task = asyncio.create_task(self._run(epochs, slot))

    async def stop(self) -> None:
        """Issue nothing more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def take(self, samples: Samples) -> None:
        """Take a collector's Samples, unless there is nothing in them that counts."""
        if not self.roll.take(samples, time.time()):
            return
        self._waiting.discard(samples.collector)
        if samples.alarm:
            self._alarmed.set()
        if samples.alarm or not self._waiting:
            self._ready.set()

    def intake(self) -> dict[str, int]:
        """What was refused, clipped or noticed of samples and nodes, by name."""
        return {**self.roll.counters, **self._nodes.counters}

    async def explain(self) -> ProfileExplanation | None:
        inputs = self._inputs
        if inputs is None:
            return None
        epoch, nodes, intake = self.epoch, self.roll.nodes(inputs.at), self.intake()
        return ProfileExplanation(
            network=self.network.name,
            epoch=epoch,
            interval=self.network.interval,
            profile=await asyncio.to_thread(account, self.network, inputs),  # of thousands of nodes it takes a while
            nodes=nodes,
            intake=intake,
        )

    async def _run(self, epochs: Epochs, slot: bytes) -> None:
        last = time.monotonic()
        await self._pause(self._issued_at + ISSUE_PAUSE - last, epochs.epoch(slot))
        while True:
            patience = (PATIENCE if self.roll.collectors(time.time()) else 1.0) * self.network.interval
            try:
                async with asyncio.timeout(last + patience - time.monotonic()):  # wait_for() may lose a cancellation
                    await self._ready.wait()
            except TimeoutError:
                log.debug("network %s: some collectors are late", self.network.name)
            self._ready.clear()
            alarm, last = self._alarmed.is_set(), time.monotonic()
            self._alarmed.clear()
            try:
                self._issue(epochs, slot, alarm)
            except Exception:  # telemetry must never stop the packet path; the next interval tries again
                log.exception("network %s: no profile this time", self.network.name)
            await self._pause(ISSUE_PAUSE, epochs.epoch(slot))

    async def _pause(self, seconds: float, issued: int) -> None:
        """Wait for so long; an alarm ends it as soon as its epoch is not too far ahead of the clock.

        A receiver takes the newest epoch and the one before. After two at once, packets on their way were too old, but
        for the rule that of epochs that are first seen in one second the one before them all stays.
        """
        end = time.monotonic() + seconds
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._alarmed.wait()
        early = issue.early_wait(time.time(), issued, self.max_future)
        await asyncio.sleep(max(0.0, min(end - time.monotonic(), early)))

    def _issue(self, epochs: Epochs, slot: bytes, alarm: bool) -> None:
        now, interval = time.time(), self.network.interval
        self.roll.prune(now)
        self._waiting = self.roll.collectors(now)
        if not alarm:  # of thousands of nodes it takes a while
            self._nodes.look(self.roll.nodes(now), time.monotonic())
        inputs = Inputs(now, self.roll.entries(), self.roll.events(), self.roll.watched(now))
        if not self._may_issue(self.network.name):
            return
        samples = [entry.sample for entry in inputs.entries]
        statement = score.statement(self.network, samples, inputs.events, now, inputs.watched)
        epoch = self._next_epoch(now, epochs.epoch(slot), alarm)
        if epoch is None:
            if alarm:
                self._alarmed.set()  # it is still to be told
            return
        epochs.set_epoch(slot, epoch)  # before it is used
        self._issued_at = time.monotonic()
        outgoing = self._verified(self._issuer.issue(statement, epoch))
        self.statement, self.epoch, self._inputs = statement, epoch, inputs
        self.issued += 1
        self._bus.publish(IssuedEpoch(self.network.name, epoch, interval, alarm, tuple(outgoing)))
        fields = {"network": self.network.name, "epoch": epoch, "interval": interval, "alarm": alarm}
        self._bus.publish(
            Notice("epoch", fields | {"issued": self.issued, "refused": self.refused} | statement_fields(statement))
        )

    def _next_epoch(self, now: float, last: int, alarm: bool) -> int | None:
        """The epoch to issue; None: there is no new one now."""
        name, told = self.network.name, self._clock_told
        self._clock_told = now < BUILT
        if self._clock_told:
            if not told:
                log.error("network %s: the clock is wrong, it is before scentd was made; nothing is issued", name)
            return None
        epoch, voided = issue.next_epoch(now, last, self.max_future, alarm or not self.issued)
        if voided:
            self.voided += 1
            log.warning(
                "network %s: the last epoch is %.0f s ahead of the clock, which was wrong; not used", name, last - now
            )
        if epoch is None:
            log.info("network %s: the last epoch is %.0f s ahead of the clock; it goes on until then", name, last - now)
            asyncio.get_running_loop().call_later(last - now, self.hurry)
        return epoch

    def _verified(self, outgoing: Sequence[Outgoing]) -> list[Outgoing]:
        """The profiles that a receiver can open and verify: each is checked before it is sent."""
        verified = [o for o in outgoing if self._issuer.verify(o)]
        if len(verified) < len(outgoing):
            self.refused += len(outgoing) - len(verified)
            log.error("network %s: a profile of our own does not verify; it is not sent", self.network.name)
        return verified


def statement_fields(statement: Statement) -> dict:
    """A statement for status and monitor."""
    return {
        "overall": statement.overall,
        "levels": dict(sorted(statement.levels.items())),
        "items": sorted(statement.items),
        "affected": sorted(map(str, statement.affected)),
    }
