"""The daemon: the only file that knows every part.

    collectors -> profilers -> workers (stamp) ==> workers (verify) -> assembler -> views -> allocator

Phases and what a failure means: while starting, it ends the daemon with one line that
says why; in a reload, the old configuration stays; afterwards nothing in telemetry,
policies or actuators stops the packet path.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path

from scentd import __version__
from scentd import config as schema
from scentd.control import epochs as epoch_file
from scentd.control import identities, notify, receiver, report
from scentd.control.allocator import Allocator
from scentd.control.paths import Paths
from scentd.control.receiver import Receiver
from scentd.control.sender import Sender, issued_slot
from scentd.control.server import Request, Server
from scentd.errors import ConfigError, ScentdError
from scentd.pairs import Pair, Pairs
from scentd.pairs import names as pair_names
from scentd.wire import layout

log = logging.getLogger("scentd")

TICK = 1.0  # seconds
SYNC_TICKS = 10


class Daemon:
    def __init__(self, config_path: str) -> None:
        """Read everything a start needs. Raises ScentdError."""
        self._config_path = config_path
        self.config = schema.load(config_path)
        self._epochs_path = Path(self.config.daemon.state_dir) / "epochs"
        self._pairs, self._epochs = self._open(self.config)
        self._allocator = Allocator(self.config, self._tell, self._quarantine)
        self._receiver = Receiver(self._allocator, self._tell)
        self._paths = Paths(self.config, self._receiver, self._spawn)
        self._sender = Sender(self._paths, self.config.datapath.mark_stamped, self._tell)
        self._server = Server(
            self.config.daemon.control_socket,
            self.config.daemon.control_group,
            {"status": lambda _: self.status(), "explain": self._explain},
        )
        self._started = time.time()
        self._rejected_told: Counter[str] = Counter()
        self._reloads = Counter(applied=0, refused=0)
        self._stop = asyncio.Event()
        self._hand_over = False
        self._tasks: set[asyncio.Task] = set()
        self._reloading = asyncio.Lock()

    # -- life ------------------------------------------------------------

    async def run(self) -> bool:
        """Start, serve until SIGTERM or SIGINT, stop. Raises ScentdError if it cannot start.

        SIGUSR1 is for an upgrade: everything stays on the host for the daemon that is started next. Returns
        whether it was that.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGUSR1, self._leave)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self.reload()))
        try:
            async with self._reloading:  # a SIGHUP that comes early waits for the start
                await self._start()
            notify.notify("READY=1", f"STATUS=serving {len(self._pairs.all)} pairs")
            log.info("scentd %s: %d networks, %d peers", __version__, len(self.config.network), len(self.config.peer))
            await self._serve()
        finally:
            notify.notify("STOPPING=1")
            await self._shut_down()
        return self._hand_over

    def _leave(self) -> None:
        self._hand_over = True
        self._stop.set()

    async def _start(self) -> None:
        await self._server.start()
        await self._paths.start()
        self._receiver.configure(self._pairs)
        await self._paths.install(self.config, self._pairs, self._epochs)
        self._allocator.start()
        await self._sender.replace(self.config, self._pairs, self._epochs)

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
        """In reverse: no new packets to the queues, then no queues, then the rest."""
        for task in list(self._tasks):
            task.cancel()
        await self._sender.stop()
        await self._paths.stop(leave=self._hand_over)
        await asyncio.to_thread(self._allocator.close, not self._hand_over)
        await self._server.stop()
        self._sync_epochs()
        log.info("handed over: all that was made on the host stays" if self._hand_over else "stopped")

    def _sync_epochs(self) -> None:
        try:
            self._epochs.sync()
        except OSError as error:
            log.error("daemon.state_dir: %s: %s; the epochs stay in memory", self._epochs_path, error.strerror)

    async def reload(self) -> None:
        """Apply the difference to a new configuration, or keep the old one and say what is wrong with the new."""
        async with self._reloading:
            notify.reloading()
            try:
                new = schema.load(self._config_path)
                refuse_restart_only(self.config, new)
                pairs, epochs = self._open(new)
            except ScentdError as error:
                self._reloads["refused"] += 1
                log.error("reload refused, the old configuration stays:\n%s", error)
                notify.notify("READY=1", "STATUS=reload refused, the old configuration stays")
                return
            try:
                await self._switch(new, pairs, epochs)
                self._reloads["applied"] += 1
                log.info("configuration reloaded")
            except ScentdError as error:
                log.error("reload: applied but for: %s", error)
            notify.notify("READY=1", f"STATUS=serving {len(pairs.all)} pairs")

    async def _switch(self, new: schema.Config, pairs: Pairs, epochs: epoch_file.Epochs) -> None:
        """Workers first, so that they know whom the new rules send them."""
        self._receiver.configure(pairs)
        before = self._epochs
        self.config, self._pairs, self._epochs = new, pairs, epochs
        self._allocator.reload(new)
        try:
            await self._paths.install(new, pairs, epochs)
        finally:
            await self._sender.replace(new, pairs, epochs, before)

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task failed; the daemon goes on", exc_info=task.exception())

    # -- tables ----------------------------------------------------------

    def _open(self, config: schema.Config) -> tuple[Pairs, epoch_file.Epochs]:
        """The pairs, numbered by their places in the epoch file, which last; and the file."""
        loaded = identities.load(config)
        names = pair_names(config, loaded)
        seen = {name: epoch_file.slot_id("seen", *name) for name in names}
        epochs = epoch_file.prepare(self._epochs_path, [*map(issued_slot, loaded.values()), *seen.values()])
        return Pairs(config, loaded, {name: epochs.slot(slot) for name, slot in seen.items()}), epochs

    # -- the running daemon ----------------------------------------------

    async def _tick(self) -> None:
        await self._paths.tick()
        self._receiver.tick()
        self._allocator.tick()
        totals = Counter(report.rejected(self._paths.counters()))
        if fresh := dict(totals - self._rejected_told):
            self._tell("rejected", {"since_last": fresh})
            self._rejected_told = totals

    def _quarantine(self, releases: dict[str, float]) -> None:
        self._paths.quarantine(releases)

    def _tell(self, event: str, fields: dict) -> None:
        self._server.tell({"event": event, "at": round(time.time(), 3), **fields})

    async def _explain(self, request: Request) -> dict:
        pair = next((p for p in self._pairs.all if p.peer.name == request.network), None)
        if pair is None:
            known = ", ".join(p.name for p in self.config.peer)
            return {"error": f"no peer is named {request.network!r}; known: {known}"}
        limit = max(1, min(request.limit, 1000))
        view = self._receiver.view_of(pair)
        seen = view.view(time.time()) if view is not None else None
        return await asyncio.to_thread(self._allocator.explain, request.network, seen, limit)

    def status(self) -> dict:
        """The whole state for people and programs; holds no secret."""
        now, counters, received = time.time(), self._paths.counters(), self._receiver.counters
        return {
            "version": __version__,
            **self._paths.describe(),
            "started": self._started,
            "config": self._config_path,
            "workers": self._paths.workers.pids(),
            "worker_restarts": self._paths.workers.restarts,
            "reloads": dict(self._reloads),
            "networks": [self._describe_network(n) for n in self.config.network],
            "peers": [self._describe_peer(p, now) for p in self._pairs.all],
            **report.packets(counters),
            "profiles": received["profiles"],
            "profile_errors": {name: received[f"error:{name}"] for name in layout.PROFILE_ERRORS.values()},
            "beacons": {
                "sent": self._sender.beacons.sent,
                "failed": self._sender.beacons.failed,
                "received": counters["accepted:drop"],
            },
            "other": {name: counters[name] for name in report.OTHER} | {"policy_errors": received["policy_errors"]},
            "allocation": self._allocator.describe(),
            "actuators": dict(self._allocator.counters()),
        }

    def _describe_network(self, network: schema.Network) -> dict:
        profiler = self._sender.profilers.get(network.name)
        key_id = self._pairs.identities[network.name].public.key_id.hex()
        if profiler is None:
            return {"name": network.name, "key_id": key_id, "collectors": {}}
        collectors = profiler.collectors.counters()
        return {"name": network.name, "key_id": key_id, "collectors": collectors} | profiler.describe()

    def _describe_peer(self, pair: Pair, now: float) -> dict:
        view = self._receiver.view_of(pair)
        return {
            "name": pair.peer.name,
            "network": pair.network.name,
            "key_id": pair.public.key_id.hex(),
            "highest_epoch": self._epochs.epoch(seen_slot(pair)),
            "profile": receiver.describe(view, now) if view is not None else None,
        }


def refuse_restart_only(old: schema.Config, new: schema.Config) -> None:
    """Raise ConfigError for changes that a running daemon cannot take over."""
    problems = [
        f"{name}: changed; this needs a restart (systemctl restart scentd)"
        for name, before, after in (
            ("datapath", old.datapath, new.datapath),
            ("daemon", old.daemon, new.daemon),
            ("stamp.fail", old.stamp.fail, new.stamp.fail),
            ("verify.fail", old.verify.fail, new.verify.fail),
            ("verify.mark_glance", old.verify.mark_glance, new.verify.mark_glance),
        )
        if before != after
    ]
    if problems:
        raise ConfigError(problems)


def seen_slot(pair: Pair) -> bytes:
    return epoch_file.slot_id("seen", pair.identity.public.raw, pair.public.raw)
