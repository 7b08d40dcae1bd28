"""The packet path as one thing: the queue's workers, the offload where the kernel has it, and their place on the host.

The queue is always there. What the offload cannot do, or when it cannot be loaded, the queue does; so losing it
is a line in the log and never a reason to stop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress

from scentd.bus.local import LocalBus
from scentd.config.sections import Config
from scentd.control.status import OffloadStatus
from scentd.core.allocate.assemble import cut
from scentd.core.offload.decode import OffloadEvent, PairState
from scentd.core.pairs import Pairs
from scentd.datapath.host import host
from scentd.datapath.host.host import Host, HostFacts
from scentd.datapath.offload.offload import Offload, OffloadError, remove_offload
from scentd.datapath.queue import link
from scentd.datapath.queue.workers import Workers
from scentd.errors import ScentdError
from scentd.model import Barred, Fragment, Outgoing
from scentd.roles.verifier import VerifierRole
from scentd.state.epochs import Epochs
from scentd.wire import keys

log = logging.getLogger(__name__)


class Paths:
    """`start` it, then `install` it on the host with pairs. What it accepts goes to the verifying role.

    Blocking work is done in threads.
    """

    def __init__(
        self,
        config: Config,
        bus: LocalBus,
        verifier: VerifierRole,
        spawn: Callable[[Coroutine[None, None, None]], None],
    ) -> None:
        """`spawn` runs a coroutine and tells of its failure."""
        self._spawn = spawn
        self.workers = Workers(config, config.daemon.log_level, self._on_message)
        self.offload: Offload | None = None
        self.why_not = "not started"
        self._config = config
        self._verifier = verifier
        self._host: Host | None = None
        self._facts = HostFacts()
        self._pairs: Pairs | None = None
        self._epochs: Epochs | None = None
        self._period = 0
        self._waiting = False  # programs of another version serve until our first epoch
        self._watched: int | None = None  # the file descriptor of the offload's events
        self._mixed: dict[int, int] = {}  # pairs of which the queue has fragments, too -> epoch
        bus.subscribe(Barred, self._bar)

    async def start(self) -> None:
        """The workers, and the offload if it can be loaded. Raises HostError."""
        await self.workers.start()
        self._host = Host(self._config, lambda facts: self._spawn(self._learn(facts)))
        if self._config.datapath.offload == "off":
            self.why_not = "datapath.offload is off"
            await asyncio.to_thread(remove_offload, self._config.datapath.pin_dir)
            return
        try:
            self.offload = await asyncio.to_thread(Offload, self._config, self._on_event)
        except OffloadError as error:
            self._do_without(error)

    async def install(self, config: Config, pairs: Pairs, epochs: Epochs) -> None:
        """Serve these pairs. Tables first: whoever gets packets must know what to do with them. Raises HostError."""
        assert self._host is not None  # start() comes first
        first = self._pairs is None
        self._config, self._pairs, self._epochs = config, pairs, epochs
        if first:  # the rules of a killed daemon may be there already
            self._facts = await asyncio.to_thread(host.planned, config)
        await self._publish()
        if first:
            self._resume()
            self._waiting = await asyncio.to_thread(self._must_wait)
        if not self._waiting:
            await self._apply()

    def _must_wait(self) -> bool:
        assert self._pairs is not None  # install() has them
        stamps = any(pair.stamps for pair in self._pairs.all)
        return stamps and self.offload is not None and self.offload.must_wait()

    async def _apply(self) -> None:
        assert self._host is not None  # start() comes first
        config, self._waiting = self._config, False
        try:
            await self._learn(await asyncio.to_thread(self._host.apply, config, self.offload))
        except OffloadError as error:
            self._do_without(error)
            await self._learn(await asyncio.to_thread(self._host.apply, config))
            await asyncio.to_thread(remove_offload, config.datapath.pin_dir)
        if self.offload is not None:
            log.info("offload: programs on %s", ", ".join(self.offload.interfaces.verifying) or "no interface")

    async def stop(self, leave: bool = False) -> None:
        """No new packets to the queues, then no queues. `leave` everything in place for a daemon that comes at once."""
        self._unwatch()
        if self._host is not None:
            try:
                await asyncio.to_thread(self._host.leave if leave else self._host.remove)
            except ScentdError as error:
                log.error("%s; `scentd cleanup` removes what is left", error)
        if self.offload is not None:
            self.offload.close()
        await self.workers.stop()

    # -- what is sent ------------------------------------------------------

    def publish_epochs(self, outgoing: dict[int, Outgoing]) -> None:
        """New epochs, by pair."""
        self.workers.publish_epochs(outgoing)
        if self.offload is not None:
            self.offload.publish(outgoing)
        if self._waiting:
            self._spawn(self._apply())

    def outgoing(self, pair: int) -> Outgoing | None:
        """What is being sent of a pair."""
        return self.workers.outgoing(pair)

    def sent(self, pair: int, epoch: int) -> int:
        """Bits of the fragments of an epoch that have left, on any path."""
        offloaded = self.offload.sent(pair, epoch) if self.offload is not None else 0
        return self.workers.sent_bits(pair, epoch) | offloaded

    def _bar(self, barred: Barred) -> None:
        """Drop what comes from these senders at the programs; nftables does so in any case."""
        if self.offload is not None:
            try:
                self.offload.quarantine({str(prefix): until for prefix, until in barred.until.items()})
            except ScentdError as error:
                log.warning("quarantine: %s", error)

    # -- the running daemon ------------------------------------------------

    async def tick(self) -> None:
        """Once a second."""
        if keys.period_of(int(time.time())) != self._period:
            await self._publish()
        if self.offload is None:
            return
        self.offload.tick()
        for pair, addresses in self.offload.drain_nodes().items():
            self._verifier.take_nodes(pair, addresses)
        for pair in list(self._mixed):
            self._take_state(pair)

    async def check(self) -> None:
        """Now and then: programs that somebody else has taken off are put back."""
        if self.offload is not None and self._host is not None:
            await asyncio.to_thread(self._host.check)

    def counters(self) -> Counter[str]:
        """Totals of all paths since the daemon's start."""
        totals = self.workers.counters()
        if self.offload is not None:
            totals.update(self.offload.counters())
        return totals

    def status(self) -> tuple[str, OffloadStatus]:
        """What serves packets, and the offload's part of the status document."""
        if self.offload is None:
            return "nfqueue", OffloadStatus(why_not=self.why_not)
        interfaces = self.offload.interfaces
        served = OffloadStatus(mechanism=interfaces.mechanism, egress=interfaces.stamping, ingress=interfaces.verifying)
        return "nfqueue+ebpf", served

    # -- tables ------------------------------------------------------------

    async def _publish(self) -> None:
        """The tables of these pairs on this host, to all paths."""
        assert self._pairs is not None
        assert self._epochs is not None
        self._period = keys.period_of(int(time.time()))
        stamp, verify = self._pairs.stamp_table(self._facts.limits), self._pairs.verify_table(self._period)
        self.workers.publish_tables(link.PathTables(stamp, verify, str(self._epochs.path), self._facts.forward_lowered))
        if self.offload is None:
            return
        unstamped = self._pairs.unstamped_prefixes()
        try:
            self.offload.configure(stamp, unstamped, verify, self._facts.addresses, self._pairs.tag_key)
        except OffloadError as error:
            await self._give_up(error)
            return
        if self._watched != self.offload.fileno():
            self._unwatch()
            self._watched = self.offload.fileno()
            asyncio.get_running_loop().add_reader(self._watched, self.offload.consume)
        for pair in self._pairs.all:
            if pair.verifies:
                self.offload.raise_epoch(pair.number, *self._epochs.row(pair.number))

    async def _learn(self, facts: HostFacts) -> None:
        """The host's routes or addresses changed, and ours with them."""
        if facts != self._facts:
            self._facts = facts
            await self._publish()

    async def _give_up(self, error: OffloadError) -> None:
        """The queue does everything from now on: rules first, then the programs go."""
        self._do_without(error)
        if self._host is not None and self._host.applied:
            await asyncio.to_thread(self._host.apply, self._config)
        await asyncio.to_thread(remove_offload, self._config.datapath.pin_dir)

    def _do_without(self, error: OffloadError) -> None:
        self._unwatch()
        if self.offload is not None:
            with suppress(ScentdError):  # it may be what has failed
                self.offload.end_lease()
            self.offload.close()
        self.offload, self.why_not = None, str(error)
        log.warning("no offload, the queue does all the work: %s", error)

    def _unwatch(self) -> None:
        if self._watched is not None:
            asyncio.get_running_loop().remove_reader(self._watched)
            self._watched = None

    # -- what is received --------------------------------------------------

    def _on_message(self, message: link.FromWorker) -> None:
        if isinstance(message, link.WorkerReport):
            for pair, addresses in message.nodes.items():
                self._verifier.take_nodes(pair, addresses)
        elif isinstance(message, link.Fragments):
            self._verifier.take_fragments(message.fragments)
            self._raise_epochs(message.fragments)

    def _raise_epochs(self, fragments: tuple[Fragment, ...]) -> None:
        """The programs must know what a queue has accepted."""
        if self.offload is None or self._epochs is None:
            return
        for fragment in fragments:
            self.offload.raise_epoch(fragment.pair, fragment.epoch, int(time.time()))
            self._mixed[fragment.pair] = fragment.epoch
            self._take_state(fragment.pair)

    def _on_event(self, event: OffloadEvent) -> None:
        assert self._epochs is not None  # no event comes before the tables
        self._epochs.raise_row(event.pair, event.epoch, int(time.time()))
        self._verifier.take_event(event)

    def _take_state(self, pair: int) -> None:
        """Some fragments came by the queue, some by the program: only together they may be all."""
        state = self.offload.state(pair) if self.offload is not None else None
        if state is None or state.highest != self._mixed.get(pair):
            self._mixed.pop(pair, None)
        else:
            self._verifier.take_fragments(fragments(pair, state))

    def _resume(self) -> None:
        """What an earlier daemon's programs have received stands in the maps; its events went to that daemon."""
        assert self._epochs is not None
        for pair, state in (self.offload.states() if self.offload is not None else {}).items():
            if state.seen:
                self._epochs.raise_row(pair, state.highest, state.since)
                self._verifier.take_fragments(fragments(pair, state))


def fragments(pair: int, state: PairState) -> list[Fragment]:
    """What the program has of a pair's newest profile."""
    return cut(pair, state.highest, state.sealed, (state.load, state.threat), state.source, state.seen)
