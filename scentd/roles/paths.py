"""The packet path as one thing: the queue's workers, the offload if the kernel allows it, and their parts on the host.

The queue always runs. It does the work that the offload cannot do, and all of it if the offload cannot be loaded. So
the loss of the offload is a line in the log and never a reason to stop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress

from scentd.bus.local import LocalBus
from scentd.config.sections import Config
from scentd.control.status import OffloadStatus
from scentd.core.closed import closed, in_both
from scentd.core.offload.decode import OffloadEvent, RefusedPacket
from scentd.core.pairs import Pairs
from scentd.datapath.answers import Answers
from scentd.datapath.host import host
from scentd.datapath.host.host import Host, HostFacts
from scentd.datapath.offload.counts import PairCounts
from scentd.datapath.offload.offload import Offload, OffloadError, remove_offload
from scentd.datapath.queue import link
from scentd.datapath.queue.workers import Workers, path_tables
from scentd.errors import HostError, ScentdError
from scentd.model import Barred, Fragment, Outgoing
from scentd.roles.bypass_log import BypassLog
from scentd.roles.guard_link import GuardLink
from scentd.roles.lag_keeper import LagKeeper
from scentd.roles.leap_keeper import LeapKeeper
from scentd.roles.learned_mtus import LearnedMtus
from scentd.roles.overload_log import OverloadLog
from scentd.roles.refusal_log import RefusalLog
from scentd.roles.rewrite_counts import RewriteCounts
from scentd.roles.traffic import Outcomes, Traffic
from scentd.roles.verifier import VerifierRole
from scentd.state.epochs import Epochs
from scentd.wire import keys

log = logging.getLogger(__name__)

UNCOVERED_MAX = 100  # addresses that are named


class Paths:
    """`start` it, then `install` it on the host with pairs. It gives what it accepts to the verifier.

    Blocking work runs in threads.
    """

    def __init__(
        self,
        config: Config,
        bus: LocalBus,
        verifier: VerifierRole,
        spawn: Callable[[Coroutine[None, None, None]], None],
    ) -> None:
        """`spawn` runs a coroutine and logs its failure."""
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
        self._install_pending = False  # programs of another version stay until our first epoch
        self._answers: Answers | None = None  # to packets that the programs have refused
        self.guard = GuardLink(config)
        self._overload = OverloadLog()
        self._refusals = RefusalLog()
        self.traffic = Traffic()
        self._rewritten = RewriteCounts(self.traffic)
        self.rules_why_not = ""  # what the last look at the host could not mend
        self.uncovered: list[str] = []  # addresses of this host that no network has
        self._leaps = LeapKeeper()
        self._learned_mtus = LearnedMtus()
        self._bypasses = BypassLog()
        self._event_fd: int | None = None  # the descriptor of the offload's events, while it is in the event loop
        self._shared_epochs: dict[int, int] = {}  # pair -> epoch of which the queue, too, has fragments
        self._barred = Barred({})
        bus.subscribe(Barred, self._quarantine)
        self._lags = LagKeeper(bus, lambda: self.offload)

    async def start(self) -> None:
        """Start the workers, and load the offload if that is possible. Raises HostError."""
        await self.workers.start(await asyncio.to_thread(self.guard.free_queues))
        self._host = Host(
            self._config,
            lambda facts: self._spawn(self._update_facts(facts)),
            lambda: self._spawn(self.check(removal=True)),
        )
        if self._config.datapath.offload == "off":
            self.why_not = "datapath.offload is off"
            await asyncio.to_thread(remove_offload, self._config.datapath.pin_dir)
            return
        try:
            self._answers = Answers()
            self.offload = await asyncio.to_thread(Offload, self._config, self._on_event)
        except OffloadError as error:
            self._drop_offload(error)

    async def install(
        self, config: Config, pairs: Pairs, epochs: Epochs, outgoing: Mapping[int, Outgoing] | None = None
    ) -> None:
        """Serve these pairs, at first with these profiles. Raises HostError.

        Tables and profiles come before the rules: packets must meet them.
        """
        first = self._pairs is None
        self._config, self._pairs, self._epochs = config, pairs, epochs
        self._lags.epochs = epochs
        self.traffic.configure(pairs)
        self._leaps.configure(config, pairs, epochs)
        if not first and (between := in_both(self.guard.closed, closed(config))) != self.guard.closed:
            await self.guard.order(between)
        if first:  # a killed daemon's rules may exist already
            self._facts = await asyncio.to_thread(host.read_facts, config)
            await self._rewritten.begin()
        await self._publish()
        self._quarantine(self._barred)  # the pairs may be others
        if first:
            self._resume()
            self.publish_epochs(dict(outgoing or {}))
            self._install_pending = await asyncio.to_thread(self._must_wait)
        if not self._install_pending:
            await self._apply()

    def _must_wait(self) -> bool:
        assert self._pairs is not None  # install() sets it
        return any(p.stamps for p in self._pairs.all) and self.offload is not None and self.offload.must_wait()

    async def _apply(self) -> None:
        assert self._host is not None  # start() comes first
        config, self._install_pending = host.with_queue(self._config, self.workers.first_queue), False
        try:
            await self._update_facts(await asyncio.to_thread(self._host.apply, config, self.offload))
        except OffloadError as error:
            self._drop_offload(error)
            await self._update_facts(await asyncio.to_thread(self._host.apply, config))
            await asyncio.to_thread(remove_offload, config.datapath.pin_dir)
        await self.guard.order(closed(config))
        if self.offload is not None:
            on = self.offload.interfaces
            log.info("offload: programs on %s", ", ".join([*on.verifying, *on.ports]) or "no interface")
        await self._bypasses.look(self._config, self.offload.interfaces.unstamping if self.offload else None)

    async def restore(self) -> None:
        """Make the host anew as the configuration wants it; what is there stays. Raises HostError."""
        if not self._install_pending:
            await self._apply()

    async def stop(self, leave: bool = False) -> None:
        """Remove the rules, then the queues. With `leave` everything on the host stays, for the next daemon."""
        self._remove_reader()
        if self._host is not None:
            try:
                await asyncio.to_thread(self._host.leave if leave else self._host.remove)
            except ScentdError as error:
                log.error("%s; `scentd cleanup` removes what is left", error)
        if self.offload is not None:
            self.offload.close()
        if self._answers is not None:
            self._answers.close()
        await self.workers.stop()
        self.guard.close(release=not leave)

    # -- sending -----------------------------------------------------------

    def publish_epochs(self, outgoing: dict[int, Outgoing]) -> None:
        """New epochs, by pair."""
        self.workers.publish_epochs(outgoing)
        if self.offload is not None:
            self.offload.publish(outgoing)
        if self._install_pending:
            self._spawn(self._apply())

    def outgoing(self, pair: int) -> Outgoing | None:
        """The profile that is sent for a pair."""
        return self.workers.outgoing(pair)

    def sent_bits(self, pair: int, epoch: int) -> int:
        """Bits of an epoch's fragments that any path has sent."""
        offloaded = self.offload.sent_bits(pair, epoch) if self.offload is not None else 0
        return self.workers.sent_bits(pair, epoch) | offloaded

    def _quarantine(self, barred: Barred) -> None:
        """Let the programs drop these senders' packets early; nftables drops prefixes in any case."""
        self._barred = barred
        if self._pairs is None:
            return
        prefixes, of_pairs = self._pairs.barred(barred)
        self.workers.bar(of_pairs)
        if self.offload is not None:
            try:
                self.offload.quarantine(prefixes, of_pairs)
            except ScentdError as error:
                log.warning("quarantine: %s", error)

    # -- the running daemon ------------------------------------------------

    async def tick(self) -> None:
        """Once a second."""
        if keys.period_of(int(time.time())) != self._period or self._learned_mtus.has_changed(time.monotonic()):
            await self._publish()
        if self._host is not None and self._host.applied:
            await self.guard.look()
            if await self._rewritten.look(self._host):
                await self.check(removal=True)
        await self._look_at_epochs()
        self._overload.look(self.workers.counters())
        refused = self._look_at_programs(self.offload) if self.offload is not None else Counter()
        self._refusals.look(self.traffic.outcomes(refused), time.monotonic())

    async def _look_at_epochs(self) -> None:
        """Go back to epochs from before a leap, if the highest one is ahead of what may come."""
        for pair, before, leapt in self._leaps.fall_back():
            if self.offload is not None:
                self.offload.fall_back(pair, before, leapt)
            self._shared_epochs.pop(pair, None)
            self._verifier.forget(pair)
        await asyncio.to_thread(self._leaps.save)

    def _look_at_programs(self, offload: Offload) -> PairCounts:
        """Renew their lease, and take what they have noted since the last second. Returns what they have refused."""
        offload.tick()
        nodes = offload.drain_nodes()
        for pair, addresses in nodes.items():
            self._verifier.take_nodes(pair, addresses)
        self.traffic.accepted_from(nodes, time.time())
        refused, epochs = offload.counts.refused()
        self.traffic.take_refused(epochs)
        for pair in list(self._shared_epochs):
            self._take_state(pair)
        return refused

    async def check(self, removal: bool = False) -> None:
        """Now and then, and after a removal from nftables: put back what somebody else has removed."""
        if self._host is None:
            return
        try:
            if await asyncio.to_thread(self._host.check, removal):
                await self.guard.order(closed(self._config))  # a reload that failed before this did not come so far
        except OffloadError as error:
            await self._fall_back(error)
        except HostError as error:  # the next check tries again
            if str(error) != self.rules_why_not:
                log.error("the host is not as the configuration wants it: %s; tried again now and then", error)
            self.rules_why_not = str(error)
            return
        self.rules_why_not = self._host.restored.why_not(time.monotonic())
        await self._bypasses.look(self._config, self.offload.interfaces.unstamping if self.offload else None)

    def counters(self) -> Counter[str]:
        """Totals of all paths since the daemon's start."""
        totals = self.workers.counters() + self._rewritten.totals
        if self.offload is not None:
            totals.update(self.offload.counts.totals())
        return totals

    def outcomes(self) -> Outcomes:
        """Packets of all paths by peer and outcome, since the daemon's start."""
        return self.traffic.outcomes(self.offload.counts.of_pairs() if self.offload is not None else Counter())

    def rules_restored(self) -> int:
        """How often something of ours was put back on the host."""
        return self._host.restored.count if self._host is not None else 0

    def status(self) -> tuple[str, OffloadStatus]:
        """The name of the packet path, and the offload's part of the status document."""
        bypasses = self._bypasses.names()
        if self.offload is None:
            wanted = self._config.datapath.offload != "off"
            return "nfqueue", OffloadStatus(why_not=self.why_not, wanted=wanted, bypasses=bypasses)
        on = self.offload.interfaces
        return "nfqueue+ebpf", OffloadStatus(
            mechanism=on.mechanism, egress=on.stamping, ingress=on.verifying, ports=on.ports, bypasses=bypasses
        )

    # -- tables ------------------------------------------------------------

    async def _publish(self) -> None:
        """Give the tables of these pairs on this host to all paths."""
        assert self._pairs is not None
        assert self._epochs is not None
        self._period = keys.period_of(int(time.time()))
        limits = [*self._facts.limits, *self._learned_mtus.limits(time.monotonic())]
        stamp = self._pairs.stamp_table(limits, dict(self._facts.origins))
        verify = self._pairs.verify_table(self._period)
        path, lowered = str(self._epochs.path.absolute()), self._facts.forward_lowered
        self.workers.publish_tables(path_tables(self._config, stamp, verify, path, lowered))
        if self.offload is None:
            return
        unstamped = self._pairs.unstamped_prefixes()
        try:
            self.offload.configure(self._config, stamp, unstamped, verify, self._facts.addresses, self._pairs.tag_keys)
        except OffloadError as error:
            await self._fall_back(error)
            return
        if self._event_fd != self.offload.fileno():
            self._remove_reader()
            self._event_fd = self.offload.fileno()
            asyncio.get_running_loop().add_reader(self._event_fd, self.offload.consume)
        for pair in self._pairs.all:
            if pair.verifies:
                self.offload.raise_epoch(pair.number, *self._epochs.row(pair.number))

    async def _update_facts(self, facts: HostFacts) -> None:
        """Publish the tables again if the host's routes or addresses have changed."""
        if facts != self._facts:
            self._facts = facts
            await self._publish()
        self._look_at_addresses()

    def _look_at_addresses(self) -> None:
        """Say which addresses of this host leave without a scent, whenever that changes."""
        assert self._pairs is not None
        uncovered = self._pairs.uncovered(self._facts.addresses)[:UNCOVERED_MAX]
        if uncovered and uncovered != self.uncovered:
            log.warning("what %s sends leaves without a scent: network.addresses lacks it", ", ".join(uncovered))
        self.uncovered = uncovered

    async def _fall_back(self, error: OffloadError) -> None:
        """Let the queue do all the work from now on: change the rules, then remove the programs."""
        self._drop_offload(error)
        if self._host is not None and self._host.applied:
            await asyncio.to_thread(self._host.apply, host.with_queue(self._config, self.workers.first_queue))
        await asyncio.to_thread(remove_offload, self._config.datapath.pin_dir)

    def _drop_offload(self, error: OffloadError) -> None:
        self._remove_reader()
        if self.offload is not None:
            with suppress(ScentdError):  # this map may be the one that failed
                self.offload.end_lease()
            self.offload.close()
        self.offload, self.why_not = None, str(error)
        log.warning("no offload, the queue does all the work: %s", error)

    def _remove_reader(self) -> None:
        if self._event_fd is not None:
            asyncio.get_running_loop().remove_reader(self._event_fd)
            self._event_fd = None

    # -- receiving -------------------------------------------------------

    def _on_message(self, message: link.FromWorker) -> None:
        if isinstance(message, link.WorkerReport):
            for pair, addresses in message.nodes.items():
                self._verifier.take_nodes(pair, addresses)
            self.traffic.take_report(message, time.time())
            self._learned_mtus.take(message.mtus, time.monotonic())
        elif isinstance(message, link.Fragments):
            for fragment in message.fragments:
                self.traffic.take_epoch(fragment.pair, fragment.epoch, time.time())
                self._leaps.note(fragment.pair, fragment.epoch)
            self._verifier.take_fragments(message.fragments)
            self._raise_epochs(message.fragments)

    def _raise_epochs(self, fragments: tuple[Fragment, ...]) -> None:
        """Tell the programs the epochs that a queue has accepted."""
        if self.offload is None or self._epochs is None:
            return
        for fragment in fragments:
            self.offload.raise_epoch(fragment.pair, fragment.epoch, int(time.time()))
            self._shared_epochs[fragment.pair] = fragment.epoch
            self._take_state(fragment.pair)

    def _on_event(self, event: OffloadEvent | RefusedPacket) -> None:
        if isinstance(event, RefusedPacket):
            assert self._answers is not None  # it is made before the programs
            self._answers.send(*event, time.time())
            return
        assert self._epochs is not None  # no event comes before the tables
        self._epochs.raise_row(event.pair, event.epoch, int(time.time()))
        self._leaps.note(event.pair, event.epoch)
        self.traffic.take_epoch(event.pair, event.epoch, time.time())
        self._verifier.take_event(event)

    def _take_state(self, pair: int) -> None:
        """Add the program's fragments of a pair to those of the queue: the profile may need both."""
        state = self.offload.state(pair) if self.offload is not None else None
        if state is None or state.highest != self._shared_epochs.get(pair):
            self._shared_epochs.pop(pair, None)
        else:
            self._verifier.take_state(pair, state)

    def _resume(self) -> None:
        """Read from the maps what the programs received under an earlier daemon, which took the events."""
        assert self._epochs is not None
        for pair, state in (self.offload.states() if self.offload is not None else {}).items():
            if state.seen:
                self._epochs.raise_row(pair, state.highest, state.since)
                self._verifier.take_state(pair, state)
