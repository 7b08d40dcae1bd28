"""What an allocator of another host wants of this host's resources: taken, kept, carried out, told about."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import msgspec

from scentd.bus.nats import DESIRED, PROVIDED, NatsBus, subject
from scentd.config.provide import offered
from scentd.config.sections import Config
from scentd.control.status import ProvidingStatus
from scentd.core.fleet import desired, provided
from scentd.core.fleet.desired import DesiredPart, DesiredState
from scentd.core.fleet.order import is_late
from scentd.core.fleet.provided import ProvidedPart
from scentd.core.fleet.seal import Kind
from scentd.model import Applied, DesiredAmounts, Observed
from scentd.roles.fleet.desired_keeper import DesiredKeeper
from scentd.roles.fleet.post import Post
from scentd.system.clock import steady
from scentd.system.loop_task import LoopTask

log = logging.getLogger(__name__)

LOOK = 0.25  # seconds from one look for what has ended to the next
GATHER = 0.2  # seconds in which what providers tell comes together into one round
BEAT = 5.0  # seconds from one round to the next at most


class DesiredTaker:
    """Publishes DesiredAmounts for the providers here. What is taken is on the disk before it is carried out."""

    def __init__(self, post: Post, publish: Callable[[object], None]) -> None:
        self.state = DesiredState()
        self._post = post
        self._publish = publish
        self._keeper: DesiredKeeper | None = None
        self._offered: list[str] = []
        self._told: set[tuple[str, str]] = set()  # allocators and resources that are not offered to them
        self._changes: dict[str, dict[str, float]] = {}
        self._new = asyncio.Event()
        self._task = LoopTask(self._run)

    @property
    def subject(self) -> str:
        return f"{subject(DESIRED, self._post.name)}.>"

    @property
    def needed(self) -> bool:
        return bool(self._offered)

    def configure(self, config: Config) -> None:
        resources = offered(config)
        self._offered = [r.name for r in resources]
        self._told.clear()
        self.state.configure(resources, [p.name for p in config.peer])
        if self._offered and self._keeper is None:
            self._keeper = DesiredKeeper(config.daemon.state_dir)
            self._keeper.load(self.state, steady(), time.time())

    def start(self) -> None:
        """Begin to carry out, unless it does so already."""
        self._task.begin()

    async def stop(self) -> None:
        await self._task.end()
        if self._keeper is not None:
            await asyncio.to_thread(self._keeper.close)

    async def catch_up(self, nats: NatsBus) -> None:
        """Take what was sent last, before this host was there. Raises OSError, NatsError."""
        for host in [h.name for h in self._post.hosts.values() if "allocate" in h.duties]:
            for name in self._offered:
                number = 0
                while message := await nats.last(subject(DESIRED, self._post.name, host, name, str(number))):
                    self.take(message)
                    number += 1

    def take(self, message: bytes) -> None:
        opened = self._post.open(Kind.DESIRED, message, "allocate")
        if opened is None:
            return
        host, plain = opened
        try:
            part = desired.decode(plain)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            self._post.counters["garbage"] += 1
            return
        self._take(host.name, part)

    def status(self) -> ProvidingStatus | None:
        if not self._offered:
            return None
        given = self.state.given()
        return ProvidingStatus(
            resources=self._offered,
            terms={name: owner.term for name, owner in self.state.owners.items()},
            amounts=sum(map(len, given.values())),
            restricted=self.state.restricted,
            file_failures=self._keeper.failures if self._keeper is not None else 0,
        )

    def _take(self, allocator: str, part: DesiredPart) -> None:
        late = is_late(part.at, time.time())
        why_not = "wrong_clock" if late else self.state.why_not(allocator, part, steady())
        if why_not:
            self._post.counters[why_not] += 1
            if why_not == "unknown_resource" and (allocator, part.resource) not in self._told:
                self._told.add((allocator, part.resource))
                log.warning("bus: %s wants amounts of %s, which this host does not offer", allocator, part.resource)
            return
        changes, odd = self.state.take(allocator, part, steady(), time.time())
        self._post.counters.update(odd or {"taken"})
        self._changes.setdefault(part.resource, {}).update(changes)
        self._new.set()

    async def _run(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await self._new.wait()
            self._new.clear()
            await self._carry_out()

    async def _carry_out(self) -> None:
        for name, amounts in self.state.due(steady()).items():
            self._post.counters["ended"] += len(amounts)
            log.info("resource %s: %d restrictions have ended: the usual amount again", name, len(amounts))
            self._changes.setdefault(name, {}).update(amounts)
        changes, self._changes = self._changes, {}
        owners, taken = self.state.take_unsaved()
        if self._keeper is not None and (owners or taken):
            await asyncio.to_thread(self._keeper.save, owners, taken)
        if wanted := {name: amounts for name, amounts in changes.items() if amounts}:
            self._publish(DesiredAmounts(wanted))


class ProvidedSender:
    """Tells the allocators what there is, what this host was told, and what it has carried out."""

    def __init__(self, post: Post, nats: NatsBus, state: DesiredState) -> None:
        self._post = post
        self._nats = nats
        self._state = state
        self._offered: frozenset[str] = frozenset()
        self._to: list[str] = []
        self._observed: dict[str, Observed] = {}
        self._applied: list[Applied] = []
        self._round = 0
        self._timer: asyncio.TimerHandle | None = None
        self._gathers = False  # the timer is for what is new

    def configure(self, config: Config) -> None:
        self._offered = frozenset(r.name for r in offered(config))
        self._observed = {name: seen for name, seen in self._observed.items() if name in self._offered}
        self._to = [h.name for h in self._post.hosts.values() if "allocate" in h.duties] if self._offered else []
        self._soon()

    def take_observed(self, seen: Observed) -> None:
        if seen.resource not in self._offered:
            return
        before = self._observed.get(seen.resource)
        untold = {*seen.drifted, *(before.drifted if before is not None else ())}
        self._observed[seen.resource] = replace(seen, drifted=tuple(sorted(untold)))
        self._soon()

    def take_applied(self, applied: Applied) -> None:
        if applied.resource in self._offered:
            self._applied = [*self._applied, applied][-provided.APPLIED_MAX :]
            self._soon()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _soon(self) -> None:
        if self._to and not self._gathers:
            self._wait(GATHER)
            self._gathers = True

    def _wait(self, seconds: float) -> None:
        self.stop()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._send)

    def _send(self) -> None:
        self._gathers = False
        if not self._to:
            return
        self._wait(BEAT)
        if not self._nats.connected:
            return  # what is untold is told later
        self._round += 1
        parts = provided.parts(provided.rows_of(self._observed.values(), self._state.taken))
        for name in self._to:
            for index, rows in enumerate(parts):
                part = ProvidedPart(
                    serial=self._post.serial(),
                    at=time.time(),
                    round=self._round,
                    index=index,
                    count=len(parts),
                    owner=self._state.owners.get(name),
                    looked=tuple(self._observed) if index == 0 else (),
                    rows=rows,
                    applied=tuple(self._applied) if index == 0 else (),
                )
                sealed = self._post.seal(Kind.PROVIDED, name, provided.encode(part))
                self._nats.send(subject(PROVIDED, name, self._post.name), sealed)
        self._applied = []
        self._observed = {name: replace(seen, drifted=()) for name, seen in self._observed.items()}
