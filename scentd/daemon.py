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
from scentd.assemble import Assembler
from scentd.control import epochs as epoch_file
from scentd.control import keys as key_files
from scentd.control import notify
from scentd.control.allocator import Allocator
from scentd.control.profiler import Profiler
from scentd.control.server import Request, Server
from scentd.datapath import host, link
from scentd.datapath.beacon import Beacons
from scentd.datapath.workers import Workers
from scentd.errors import ConfigError, ScentdError
from scentd.model import View
from scentd.pairs import Pair, Pairs
from scentd.tables import Fragment, Outgoing
from scentd.view import NetworkView
from scentd.wire import keys, layout, profile

log = logging.getLogger("scentd")

TICK = 1.0  # seconds
BEACON_AT = 0.6  # of an interval: what has not left by then goes in beacons
SYNC_TICKS = 10
OTHER_COUNTERS = ("icmp_unquoted", "icmp_too_big_sent", "internal_errors", "link_overflow")
ALARM_THREAT = 0.5  # a glance from here on is acted on before the next tick


class Daemon:
    def __init__(self, config_path: str) -> None:
        """Read everything a start needs. Raises ScentdError."""
        self._config_path = config_path
        self.config = schema.load(config_path)
        self._identities = load_identities(self.config)
        self._numbers: dict[tuple[bytes, bytes], int] = {}
        self._pairs = Pairs(self.config, self._identities, self._numbers)
        self._epochs_path = Path(self.config.daemon.state_dir) / "epochs"
        self._epochs = self._open_epochs(self._pairs)
        self._workers = Workers(self.config, self.config.daemon.log_level, self._on_message)
        self._beacons = Beacons(self.config.datapath.mark_stamped)
        self._assembler = Assembler()
        self._views: dict[int, NetworkView] = {}
        self._profilers: dict[str, Profiler] = {}
        self._allocator = Allocator(self.config, self._tell)
        self._server = Server(
            self.config.daemon.control_socket,
            self.config.daemon.control_group,
            {"status": lambda _: self.status(), "explain": self._explain},
        )
        self._host: host.Host | None = None
        self._limits: host.Limits = ()
        self._period = 0
        self._started = time.time()
        self._received: Counter[str] = Counter()
        self._rejected_told: Counter[str] = Counter()
        self._reloads = Counter(applied=0, refused=0)
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task] = set()
        self._reloading = asyncio.Lock()

    # -- life ------------------------------------------------------------

    async def run(self) -> None:
        """Start, serve until SIGTERM or SIGINT, stop. Raises ScentdError if it cannot start."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
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

    async def _start(self) -> None:
        await self._server.start()
        await self._workers.start()
        self._views = self._make_views(self._pairs)
        # Before the rules send anything; those of a killed daemon may be there already.
        self._publish_tables(await asyncio.to_thread(host.planned, self.config))
        self._host = host.Host(self._on_routes)
        self._on_routes(await asyncio.to_thread(self._host.apply, self.config))
        self._allocator.start()
        await self._replace_profilers(self.config, self._pairs, self._identities)

    async def _serve(self) -> None:
        watchdog = notify.watchdog_seconds()
        ticks = 0
        while not self._stop.is_set():
            try:
                await asyncio.wait_for(self._stop.wait(), TICK)
            except TimeoutError:
                ticks += 1
                self._tick()
                if ticks % SYNC_TICKS == 0:
                    await asyncio.to_thread(self._sync_epochs)
            if watchdog and self._workers.alive():
                notify.notify("WATCHDOG=1")

    async def _shut_down(self) -> None:
        """In reverse: no new packets to the queues, then no queues, then the rest."""
        for task in list(self._tasks):
            task.cancel()
        for profiler in self._profilers.values():
            await profiler.stop()
        if self._host is not None:
            try:
                await asyncio.to_thread(self._host.remove, self.config)
            except ScentdError as error:
                log.error("%s; `scentd cleanup` removes what is left", error)
        await self._workers.stop()
        await asyncio.to_thread(self._allocator.close)
        await self._server.stop()
        self._sync_epochs()
        log.info("stopped")

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
                identities = load_identities(new)
                pairs = Pairs(new, identities, self._numbers)
                epochs = self._open_epochs(pairs)
            except ScentdError as error:
                self._reloads["refused"] += 1
                log.error("reload refused, the old configuration stays:\n%s", error)
                notify.notify("READY=1", "STATUS=reload refused, the old configuration stays")
                return
            try:
                await self._switch(new, pairs, identities, epochs)
                self._reloads["applied"] += 1
                log.info("configuration reloaded")
            except ScentdError as error:
                log.error("reload: applied but for: %s", error)
            notify.notify("READY=1", f"STATUS=serving {len(pairs.all)} pairs")

    async def _switch(
        self, new: schema.Config, pairs: Pairs, identities: dict[str, keys.Identity], epochs: epoch_file.Epochs
    ) -> None:
        """Workers first, so that they know whom the new rules send them."""
        self._views = self._make_views(pairs)
        self._assembler.keep_only(set(pairs.by_number))
        before = self._epochs
        self.config, self._pairs, self._identities, self._epochs = new, pairs, identities, epochs
        self._publish_tables(self._limits)
        self._allocator.reload(new)
        assert self._host is not None  # a reload comes after the start
        try:
            self._publish_tables(await asyncio.to_thread(self._host.apply, new))
        finally:
            await self._replace_profilers(new, pairs, identities, before)

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task failed; the daemon goes on", exc_info=task.exception())

    # -- tables ----------------------------------------------------------

    def _open_epochs(self, pairs: Pairs) -> epoch_file.Epochs:
        issued = [issued_slot(i) for i in pairs.identities.values()]
        return epoch_file.prepare(self._epochs_path, [*issued, *(seen_slot(p) for p in pairs.all)])

    def _publish_tables(self, limits: host.Limits) -> None:
        self._limits = limits
        self._period = keys.period_of(int(time.time()))
        slots = {p.number: self._epochs.slot(seen_slot(p)) for p in self._pairs.all}
        self._workers.publish_tables(
            link.Tables(
                self._pairs.stamp_table(limits),
                self._pairs.verify_table(self._period, slots),
                str(self._epochs_path),
            )
        )

    def _on_routes(self, limits: host.Limits) -> None:
        """The host's routes changed, and ours with them."""
        if limits != self._limits:
            self._publish_tables(limits)

    def _make_views(self, pairs: Pairs) -> dict[int, NetworkView]:
        """A view for each pair that is verified; those of unchanged peers are kept."""
        views = {}
        for pair in pairs.all:
            if not pair.peer.verify:
                continue
            before, old = self._pairs.by_number.get(pair.number), self._views.get(pair.number)
            same = before is not None and before.peer == pair.peer
            views[pair.number] = old if same and old is not None else self._new_view(pair)
        return views

    @staticmethod
    def _new_view(pair: Pair) -> NetworkView:
        return NetworkView(pair.peer.name, pair.pseudonym_key(), schema.prefixes(pair.peer.addresses), pair.slots())

    # -- sending ---------------------------------------------------------

    async def _replace_profilers(
        self,
        config: schema.Config,
        pairs: Pairs,
        identities: dict[str, keys.Identity],
        epochs_before: epoch_file.Epochs | None = None,
    ) -> None:
        """Raises the first HostError of a network that had no sources before, once all others run.

        The old profilers issue nothing more before the new ones begin: no epoch is used twice.
        """
        before, self._profilers = self._profilers, {}
        for profiler in before.values():
            await profiler.pause()
        if epochs_before is not None:
            self._epochs.raise_to(epochs_before)
        failed: list[ScentdError] = []
        for network in config.network:
            if not network.collect:
                continue
            identity, old, served = identities[network.name], before.get(network.name), pairs.of_network(network.name)
            made = Profiler(network, identity, served, self._publish, self._on_epoch)
            try:
                await made.open(old)
            except ScentdError as error:
                await made.stop()
                if old is None:
                    failed.append(error)
                    continue
                log.error("network %s: %s; its old sources stay", network.name, error)
                made = before.pop(network.name)
                made.serve(identity, served)
            made.begin(self._epochs, issued_slot(identity))
            self._profilers[network.name] = made
        for unused in before.values():
            await unused.stop()
        if failed:
            raise failed[0]

    def _publish(self, outgoing: list[Outgoing]) -> None:
        self._workers.publish_epochs(outgoing)

    def _on_epoch(self, event: str, fields: dict) -> None:
        self._tell(event, fields)
        if event != "epoch":
            return
        delay = 0.0 if fields["alarm"] else BEACON_AT * fields["interval"]
        loop = asyncio.get_running_loop()
        loop.call_later(delay, self._send_beacons, fields["network"], fields["epoch"], fields["alarm"])

    def _send_beacons(self, network: str, epoch: int, alarm: bool) -> None:
        """What of an epoch has not left in other packets; all of an alarm, at once."""
        for outgoing in self._workers.outgoing():
            pair = self._pairs.by_number.get(outgoing.pair)
            if pair is None or pair.network.name != network or outgoing.epoch != epoch:
                continue
            sent = 0 if alarm else self._workers.sent(outgoing.pair, epoch)
            missing = [i for i in range(layout.FRAGMENTS) if not sent >> i & 1]
            if missing:
                self._beacons.send(pair, outgoing, missing)

    # -- receiving -------------------------------------------------------

    def _on_message(self, message: link.FromWorker) -> None:
        if isinstance(message, link.Fragments):
            changed = {f.pair for f in message.fragments if self._on_fragment(f)}
            if changed:
                self._decide(changed)
        elif isinstance(message, link.Report):
            for pair, addresses in message.nodes.items():
                if pair in self._views:
                    self._views[pair].take_nodes(addresses, time.time())

    def _on_fragment(self, fragment: Fragment) -> bool:
        """Whether policies should look at the pair now."""
        view = self._views.get(fragment.pair)
        if view is None:
            return False
        now = time.time()
        view.take_nodes([fragment.source], now)
        alarmed = view.take_glance(fragment.epoch, fragment.load, fragment.threat) and fragment.threat >= ALARM_THREAT
        sealed = self._assembler.add(fragment)
        return (sealed is not None and self._on_sealed(fragment, sealed, view, now)) or alarmed

    def _on_sealed(self, fragment: Fragment, sealed: bytes, view: NetworkView, now: float) -> bool:
        pair = self._pairs.by_number[fragment.pair]
        seal_key = pair.receive_keys(keys.period_of(fragment.epoch)).seal
        body = profile.open_sealed(sealed, seal_key, pair.public.verifier(), pair.public.key_id, fragment.epoch)
        if isinstance(body, int):
            reason = layout.PROFILE_ERRORS[body]
            self._received[f"error:{reason}"] += 1
            log.warning("peer %s: a whole profile of epoch %d is wrong: %s", view.network, fragment.epoch, reason)
            return False
        self._received["profiles"] += 1
        made = view.take_profile(body, now)
        self._tell("profile", {"network": made.network} | (describe_profile(view, now) or {}))
        return True

    def _decide(self, pairs: set[int]) -> None:
        """Let the policies look at these pairs' networks; of several views of a network the newest counts."""
        now = time.time()
        newest: dict[str, View] = {}
        for number in sorted(pairs):
            view = self._views[number].view(now) if number in self._views else None
            if view is not None and (
                view.network not in newest or newest[view.network].profile.epoch < view.profile.epoch
            ):
                newest[view.network] = view
        try:
            self._allocator.decide(list(newest.values()), now)
        except Exception:  # a policy must never stop the datapath
            self._received["policy_errors"] += 1
            log.exception("the policies failed on a round; the next one tries again")

    def _tick(self) -> None:
        if keys.period_of(int(time.time())) != self._period:
            self._publish_tables(self._limits)
        self._decide(set(self._views))
        self._allocator.tick()
        totals = Counter(rejected_counts(self._workers.counters()))
        if fresh := dict(totals - self._rejected_told):
            self._tell("rejected", {"since_last": fresh})
            self._rejected_told = totals

    # -- telling ---------------------------------------------------------

    def _tell(self, event: str, fields: dict) -> None:
        self._server.tell({"event": event, "at": round(time.time(), 3), **fields})

    async def _explain(self, request: Request) -> dict:
        number = next((p.number for p in self._pairs.all if p.peer.name == request.network), None)
        if number is None:
            known = ", ".join(p.name for p in self.config.peer)
            return {"error": f"no peer is named {request.network!r}; known: {known}"}
        limit = max(1, min(request.limit, 1000))
        return await asyncio.to_thread(self._allocator.explain, request.network, self._views.get(number), limit)

    def status(self) -> dict:
        """The whole state for people and programs; holds no secret."""
        now = time.time()
        counters = self._workers.counters()
        return {
            "version": __version__,
            "datapath": "nfqueue",
            "started": self._started,
            "config": self._config_path,
            "workers": self._workers.pids(),
            "worker_restarts": self._workers.restarts,
            "reloads": dict(self._reloads),
            "networks": [
                {"name": n.name, "key_id": self._identities[n.name].public.key_id.hex()}
                | (self._profilers[n.name].describe() if n.name in self._profilers else {})
                | {"collectors": self._profilers[n.name].collectors.counters() if n.name in self._profilers else {}}
                for n in self.config.network
            ],
            "peers": [self._describe_peer(p, now) for p in self._pairs.all],
            "stamped": counters["stamped"],
            "accepted": counters["accepted"] + counters["accepted:drop"],
            "absent": verdict_counts(counters, "absent"),
            "rejected": rejected_counts(counters),
            "treated": {k: v for k, v in sorted(counters.items()) if ":" in k and not k.startswith("unstamped:")},
            "unstamped": {reason: counters[f"unstamped:{reason}"] for reason in layout.UNSTAMPED.values()},
            "profiles": self._received["profiles"],
            "profile_errors": {name: self._received[f"error:{name}"] for name in layout.PROFILE_ERRORS.values()},
            "beacons": {
                "sent": self._beacons.sent,
                "failed": self._beacons.failed,
                "received": counters["accepted:drop"],
            },
            "other": {name: counters[name] for name in OTHER_COUNTERS}
            | {"policy_errors": self._received["policy_errors"]},
            "allocation": self._allocator.describe(),
            "actuators": dict(self._allocator.counters()),
        }

    def _describe_peer(self, pair: Pair, now: float) -> dict:
        view = self._views.get(pair.number)
        return {
            "name": pair.peer.name,
            "network": pair.network.name,
            "key_id": pair.public.key_id.hex(),
            "highest_epoch": self._epochs.epoch(seen_slot(pair)),
            "profile": describe_profile(view, now) if view is not None else None,
        }


def describe_profile(view: NetworkView, now: float) -> dict | None:
    seen = view.view(now)
    if seen is None:
        return None
    newest = seen.profile
    return {
        "epoch": newest.epoch,
        "interval": newest.interval,
        "age": round(now - seen.received_at, 1),
        "overall": newest.overall,
        "levels": dict(sorted(newest.levels.items())),
        "glance": {"load": round(seen.glance_load, 3), "threat": round(seen.glance_threat, 3)},
        "nodes": len(seen.nodes),
        "affected": sorted(map(str, seen.affected)),
    }


def verdict_counts(counters: Counter[str], verdict: str) -> int:
    return sum(n for key, n in counters.items() if key.partition(":")[0] == verdict)


def rejected_counts(counters: Counter[str]) -> dict[str, int]:
    """By reason; every reason is there."""
    return {
        name: verdict_counts(counters, name)
        for number, name in layout.VERDICTS.items()
        if number not in (layout.VERDICT_ACCEPTED, layout.VERDICT_ABSENT)
    }


def load_identities(config: schema.Config) -> dict[str, keys.Identity]:
    """The identities of all networks. Raises ConfigError with every wrong key at once."""
    identities: dict[str, keys.Identity] = {}
    problems = []
    for i, network in enumerate(config.network):
        try:
            made = key_files.load(network.key_file)
        except ScentdError as error:
            problems.append(f"network[{i}].{error}")
            continue
        same = [name for name, other in identities.items() if other.public == made.public]
        if same:
            problems.append(f"network[{i}].key_file: holds the key of network {same[0]!r}; make one for each")
        identities[network.name] = made
    for i, peer in enumerate(config.peer):
        problems += [f"peer[{i}].public_key: {why}" for why in wrong_key(peer, list(identities.values()))]
    if problems:
        raise ConfigError(problems)
    return identities


def wrong_key(peer: schema.Peer, identities: list[keys.Identity]) -> list[str]:
    public = keys.parse_public(peer.public_key)
    if any(public == identity.public for identity in identities):
        return ["is a key of this host; name the other end's"]
    try:
        for identity in identities[:1]:
            keys.pair_secret(identity, public)
    except ValueError as error:
        return [f"{error}; take the output of `scentd pubkey`"]
    return []


def refuse_restart_only(old: schema.Config, new: schema.Config) -> None:
    """Raise ConfigError for changes that a running daemon cannot take over."""
    problems = [
        f"{name}: changed; this needs a restart (systemctl restart scentd)"
        for name, before, after in (
            ("datapath", old.datapath, new.datapath),
            ("daemon", old.daemon, new.daemon),
            ("stamp.fail", old.stamp.fail, new.stamp.fail),
            ("verify.fail", old.verify.fail, new.verify.fail),
        )
        if before != after
    ]
    if problems:
        raise ConfigError(problems)


def issued_slot(identity: keys.Identity) -> bytes:
    return epoch_file.slot_id("issued", identity.public.raw)


def seen_slot(pair: Pair) -> bytes:
    return epoch_file.slot_id("seen", pair.identity.public.raw, pair.public.raw)
