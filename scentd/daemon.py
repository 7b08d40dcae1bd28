"""The daemon composes the roles over a bus; roles exchange only the values of model.py.

    collector -> Samples -> profiler -> IssuedEpoch -> stamper -> packet path ==> packet path -> verifier
        -> Views -> allocator -> Barred -> packet path

A failure while starting ends the daemon with one line that says why. A failure in a
reload keeps the old configuration. Later no failure of telemetry, policies or actuators
stops the packet path.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING

from scentd import __version__, reload, revoke
from scentd.bus.local import LocalBus
from scentd.control import packet_counts
from scentd.control.server import Request, Server
from scentd.control.status import LIMIT, BeaconStatus, Explanation, Omitted, ProfileExplanation, Status, limit_list
from scentd.core.pairs import Pairs
from scentd.errors import ConfigError, HostError
from scentd.model import SCHEMA, Notice
from scentd.reload import ReloadOutcome, Reloads, Setup
from scentd.roles.allocation_status import allocation_status, explanation
from scentd.roles.allocator import AllocatorRole
from scentd.roles.collector import CollectorRole
from scentd.roles.paths import Paths
from scentd.roles.profiler import ProfilerRole
from scentd.roles.resources import ResourceRole
from scentd.roles.stamper import StamperRole
from scentd.roles.verifier import VerifierRole
from scentd.state import issued, revoked, slots
from scentd.state.epochs import Epochs, prepare
from scentd.state.issued import IssuedEpochs
from scentd.system import notify
from scentd.system.clock import ClockWatch
from scentd.wire import keys, layout

if TYPE_CHECKING:
    from scentd.roles.fleet.fleet import FleetRole

log = logging.getLogger("scentd")

TICK = 1.0  # seconds
SYNC_TICKS = 10
FIRST_EPOCHS = 3.0  # seconds that a start waits for them at most; sources need half a second
EXPLAIN_LIMIT = 20  # decisions


class Daemon:
    def __init__(self, config_path: str, leave: bool = False) -> None:
        """Read everything a start needs. `leave`: the end removes nothing from the host. Raises ScentdError."""
        self._config_path = config_path
        self._leave = leave
        setup = reload.read(config_path)
        self.config = setup.config
        self._epochs_path = Path(self.config.daemon.state_dir) / "epochs"
        self._pairs, self._epochs = self._open(setup)
        self._bus = LocalBus()
        self._allocator = AllocatorRole(self.config, self._bus)
        self._resources = ResourceRole(self.config, self._bus, self._allocator.hurting)
        self._verifier = VerifierRole(self._bus)
        self._paths = Paths(self.config, self._bus, self._verifier, self._spawn)
        self._issued = IssuedEpochs(issued.directory(self.config))
        self._stamper = StamperRole(self._bus, self._paths, self.config.datapath.mark_stamped, self._issued)
        self._profiler = ProfilerRole(self._bus)
        self._fleet = self._join_fleet(setup)
        self._collector = CollectorRole(self._bus, pin_dir=self.config.datapath.pin_dir)
        self._server = Server(
            self.config.daemon.control_socket,
            self.config.daemon.control_group,
            {
                "status": lambda request: self.status(LIMIT if request.limit is None else max(0, request.limit)),
                "explain": self._explain,
                "explain-profile": self._explain_profile,
                "reload": lambda request: self._reloads.reload(request.confirm),
                "confirm": lambda _: self._reloads.confirm(),
                "restore": lambda _: self._restore(),
                "revoke": self._revoke,
                "release": lambda request: self._allocator.release(request.name, request.seconds),
                "event": self._report,
                "hold": lambda request: {"held": sorted(self._allocator.hold(request.names))},
                "resume": lambda request: {"held": sorted(self._allocator.resume(request.names))},
            },
        )
        self._bus.subscribe(Notice, self._send_notice)
        self._started = time.time()
        self._clock = ClockWatch()
        self._rejected_reported: Counter[str] = Counter()
        self._reloads = Reloads(config_path, setup, self._switch, self._spawn)
        self._stop = asyncio.Event()
        self._hand_over = False
        self._tasks: set[asyncio.Task] = set()

    # -- life ------------------------------------------------------------

    async def run(self) -> bool:
        """Start, serve until SIGTERM or SIGINT, stop. Raises ScentdError if it cannot start.

        SIGUSR1 is for an upgrade: everything stays on the host for the next daemon. Returns whether
        SIGUSR1 ended it.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGUSR1, self._on_hand_over)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self._on_hangup()))
        await self._server.start()  # fails beside another daemon: then nothing of that one's may be touched
        try:
            async with self._reloads.lock:  # a SIGHUP that comes early waits for the start
                await self._start()
            await self._first_epochs()
            notify.notify("READY=1", f"STATUS=serving {len(self._pairs.all)} pairs")
            log.info("scentd %s: %d networks, %d peers", __version__, len(self.config.network), len(self.config.peer))
            await self._serve()
        finally:
            notify.notify("STOPPING=1")
            await self._shut_down()
        return self._hand_over

    def _on_hand_over(self) -> None:
        self._hand_over = self._leave = True
        self._stop.set()

    async def _start(self) -> None:
        await self._paths.start()
        self._verifier.configure(self._pairs)
        self._stamper.configure(self._pairs)
        outgoing = await asyncio.to_thread(self._stamper.last_outgoing)
        await self._paths.install(self.config, self._pairs, self._epochs, outgoing)
        given = self._allocator.start()
        if self._fleet is not None:
            given |= self._fleet.given(self.config)
        await self._resources.start(given)
        if self._fleet is not None:
            await self._fleet.configure(self.config, self._pairs)
            self._fleet.start()
        await self._profiler.replace(self.config, self._pairs, self._epochs)
        if problems := await self._collector.replace(self.config):
            raise HostError("\n".join(problems))

    async def _first_epochs(self) -> None:
        """Wait, not for long, until there is something to send: whoever waits for the start expects scents after it."""
        end = time.monotonic() + FIRST_EPOCHS
        while not self._profiler.has_issued() and time.monotonic() < end and not self._stop.is_set():
            await asyncio.sleep(0.05)

    async def _serve(self) -> None:
        watchdog = notify.watchdog_seconds()
        ticks = 0
        while not self._stop.is_set():
            try:
                await asyncio.wait_for(self._stop.wait(), TICK)
            except TimeoutError:
                ticks += 1
                await self._tick()
                if ticks % SYNC_TICKS == 0:
                    await asyncio.to_thread(self._sync_epochs)
                    self._spawn(self._paths.check())
            if watchdog and self._paths.workers.alive():
                notify.notify("WATCHDOG=1")

    async def _shut_down(self) -> None:
        """Stop in reverse order: the rules, then the queues, then all other parts."""
        self._reloads.stop()
        for task in list(self._tasks):
            task.cancel()
        await self._collector.stop()
        await self._profiler.stop()
        if self._fleet is not None:
            await self._fleet.stop()
        self._stamper.stop()
        await self._paths.stop(leave=self._leave)
        await asyncio.to_thread(self._resources.close, not self._leave)
        await asyncio.to_thread(self._allocator.close, not self._leave)
        await self._server.stop()
        self._sync_epochs()
        if not self._leave:
            self._issued.remove()
        log.info("ended: all that was made on the host stays" if self._leave else "stopped")

    def _join_fleet(self, setup: Setup) -> FleetRole | None:
        """The bus between hosts, if this one is on it. Raises ScentdError."""
        if setup.bus_identity is None:
            return None
        try:
            from scentd.roles.fleet.fleet import FleetRole
        except ModuleNotFoundError as error:
            raise HostError(f"bus.url: needs the package {error.name}: pip install 'scentd[bus]'") from None
        return FleetRole(setup.config.bus, setup.bus_identity, self._bus, self._profiler, self._allocator)

    def _sync_epochs(self) -> None:
        try:
            self._epochs.sync()
        except OSError as error:
            log.error("daemon.state_dir: %s: %s; the epochs stay in memory", self._epochs_path, error.strerror)

    async def _switch(self, setup: Setup) -> list[str]:
        """Take a configuration over, and return what did not work. Raises ConfigError before anything has changed.

        The roles get the pairs before the rules send packets of new peers.
        """
        new, problems = setup.config, []
        try:
            pairs, epochs = self._open(setup)
            self._server.restrict(new.daemon.control_group)
        except HostError as error:
            raise ConfigError([str(error)]) from error
        logging.getLogger().setLevel(new.daemon.log_level.upper())
        self._verifier.configure(pairs)
        self._stamper.configure(pairs)
        before = self._epochs
        self.config, self._pairs, self._epochs = new, pairs, epochs
        self._allocator.reload(new)
        await self._resources.reload(new)
        try:
            await self._paths.install(new, pairs, epochs)
        except HostError as error:
            problems.append(f"{error}; tried again every {SYNC_TICKS * TICK:.0f} s")
        if self._fleet is not None:
            await self._fleet.configure(new, pairs)
        await self._profiler.replace(new, pairs, epochs, before)
        return problems + await self._collector.replace(new)

    async def _restore(self) -> dict:
        """Put back what somebody has taken away from the host. Raises HostError."""
        async with self._reloads.lock:
            await self._paths.restore()
        return {}

    async def _revoke(self, request: Request) -> ReloadOutcome:
        """Revoke a peer's key, or take that back. Raises HostError."""
        try:
            key = keys.parse_public(request.key)
        except ValueError as error:
            raise HostError(f"{request.key!r}: {error}") from None
        revoked.change(self.config.daemon.state_dir, key, request.undo)
        owners = ", ".join(revoke.peers_of(self.config, str(key))) or "no peer"
        log.warning("key %s of %s is %s", key, owners, "accepted again" if request.undo else "revoked")
        return await self._reloads.again()

    def _report(self, request: Request) -> dict[str, object]:
        """Take a security event. Raises ScentdError."""
        if request.report is None:
            raise HostError("event: the report is missing")
        return self._collector.report(request.report)

    async def _on_hangup(self) -> None:
        await self._reloads.reload()

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task failed; the daemon goes on", exc_info=task.exception())

    def _open(self, setup: Setup) -> tuple[Pairs, Epochs]:
        """Return the pairs and the epoch file. A pair's number is its slot in the file, which never changes."""
        config, own = setup.config, setup.identities
        seen = slots.seen_slots(config)
        epochs = prepare(self._epochs_path, [*map(slots.issued_slot, own), *seen.values()])
        slots.carry_over(epochs, config, own)
        numbers = {name: epochs.slot(slot) for name, slot in seen.items()}
        return Pairs(config, own, numbers, revoked.read(config.daemon.state_dir)), epochs

    # -- the running daemon ----------------------------------------------

    async def _tick(self) -> None:
        if jump := self._clock.jumped():
            log.warning("the clock was set by %+.0f s, or this machine was suspended; epochs begin anew", jump)
            self._profiler.hurry()
        await self._paths.tick()
        self._verifier.tick()
        self._allocator.tick()
        totals = Counter(packet_counts.rejected(self._paths.counters()))
        if fresh := dict(totals - self._rejected_reported):
            self._bus.publish(Notice("rejected", {"since_last": fresh}))
            self._rejected_reported = totals

    def _send_notice(self, notice: Notice) -> None:
        event = {"schema": SCHEMA, "event": notice.event, "at": round(time.time(), 3)}
        self._server.publish(event | {name: value for name, value in notice.fields.items() if name not in event})

    async def _explain(self, request: Request) -> Explanation | dict:
        if all(p.name != request.peer for p in self.config.peer):
            known = ", ".join(p.name for p in self.config.peer)
            return {"error": f"no peer is named {request.peer!r}; known: {known}"}
        view = self._verifier.view_of(request.peer, time.time())
        if view is None and self._fleet is not None:
            view = self._fleet.view_of(request.peer, time.time())
        limit = max(1, min(EXPLAIN_LIMIT if request.limit is None else request.limit, 1000))
        return await asyncio.to_thread(explanation, self._allocator, request.peer, view, limit)

    async def _explain_profile(self, request: Request) -> ProfileExplanation | dict:
        if all(n.name != request.network for n in self.config.network):
            known = ", ".join(n.name for n in self.config.network) or "none"
            return {"error": f"no network of this host is named {request.network!r}; known: {known}"}
        explanation = await self._profiler.explain(request.network)
        if explanation is None:
            way_out = "ask the host that signs it; `scentd status` says what this one does"
            return {"error": f"network {request.network}: no profile of it has been made here; {way_out}"}
        return explanation

    def _why_not(self, resource: str, peer: str) -> str:
        elsewhere = self._fleet.why_not(resource, peer) if self._fleet is not None else ""
        return elsewhere or self._resources.why_not(resource, peer)

    def status(self, limit: int) -> Status:
        """The whole state; at most `limit` entries of each list that grows with the configuration, 0: all."""
        now, counters, received = time.time(), self._paths.counters(), self._verifier.counters
        networks, more_networks = limit_list(
            [
                self._profiler.status(n, self._pairs.key_ids(n.name), *self._collector.status(n.name), limit)
                for n in self.config.network
            ],
            limit,
            lambda n: (n.levels.get("threat", 0.0), n.overall or 0.0),
        )
        known = [self._verifier.status(p, self._epochs.row(p.number), now) for p in self._pairs.all]
        peers, more_peers = limit_list(
            known + (self._fleet.peers(now) if self._fleet is not None else []),
            limit,
            lambda p: (p.profile.levels.get("threat", 0.0), p.profile.overall or 0.0) if p.profile else (-1.0, 0.0),
        )
        outcomes = self._paths.outcomes()
        traffic, more_traffic = limit_list(
            [self._paths.traffic.status(p.name, outcomes.get(p.name, Counter())) for p in self.config.peer],
            limit,
            lambda t: (sum(t.rejected.values()) + sum(t.absent.values()), sum(t.unstamped.values()), t.accepted),
        )
        allocation, more_resources, more_policies = allocation_status(
            self._allocator, self.config, self._why_not, limit
        )
        datapath, offload = self._paths.status()
        return Status(
            version=__version__,
            started=self._started,
            config=self._config_path,
            datapath=datapath,
            offload=offload,
            guard=self._paths.guard.status(),
            rules_why_not=self._paths.rules_why_not,
            rules_restored=self._paths.rules_restored(),
            workers=self._paths.workers.pids(),
            worker_restarts=self._paths.workers.restarts,
            reloads=dict(self._reloads.counts),
            trial_until=self._reloads.trial_until,
            reverted_at=self._reloads.reverted_at,
            networks=networks,
            prometheus_servers=self._collector.servers(),
            bus=None if self._fleet is None else self._fleet.status(),
            peers=peers,
            traffic=traffic,
            strangers=packet_counts.strangers(counters, outcomes.values()),
            uncovered=self._paths.uncovered,
            omitted=Omitted(
                networks=len(more_networks),
                issued=sum(n.issued for n in more_networks),
                peers=len(more_peers),
                peers_without_profile=sum(p.profile is None for p in more_peers),
                traffic=packet_counts.summed(outcomes.get(t.name, Counter()) for t in more_traffic),
                resources=more_resources,
                policies=more_policies,
            ),
            **packet_counts.packets(counters),
            profiles=received["profiles"],
            profile_errors={name: received[f"error:{name}"] for name in layout.PROFILE_ERRORS.values()},
            beacons=BeaconStatus(
                sent=self._stamper.beacons.sent,
                failed=self._stamper.beacons.failed,
                received=counters["accepted:drop"],
            ),
            other={name: counters[name] for name in packet_counts.OTHER}
            | {"policy_errors": self._allocator.policy_errors, "bus_failures": sum(self._bus.failures.values())}
            | {"unknown_network": self._profiler.unknown_network},
            allocation=allocation,
            actuators={**self._allocator.counters(), **self._resources.counters()},
        )
