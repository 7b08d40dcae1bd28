"""Resources of other hosts: what this allocator wants of them, and what they say of it."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NamedTuple

import msgspec

from scentd.bus.nats import DESIRED, PROVIDED, NatsBus, subject
from scentd.config.sections import Config
from scentd.core.allocate.amounts import Amounts
from scentd.core.fleet import desired, provided
from scentd.core.fleet.desired import DesiredPart, desired_amount
from scentd.core.fleet.lease import Lease
from scentd.core.fleet.provided import ProvidedPart, Rounds, is_sound, observations
from scentd.core.fleet.seal import Kind
from scentd.model import DesiredAmounts
from scentd.roles.fleet.post import Post
from scentd.system.clock import steady
from scentd.system.loop_task import LoopTask

log = logging.getLogger(__name__)

INTERVAL = 2.0  # seconds, of the allocators' lease
LOOK = 0.5  # seconds from one look for wishes that stand for longer, or a newer term, to the next
GATHER = 0.1  # seconds in which changes come together
AGAIN = 20.0  # seconds after which all is said again: what is kept, and restrictions, end otherwise
TWIN = 3.0  # seconds after which another allocator that says nothing is gone: it says something twice a second


class PeerGroup(NamedTuple):
    """Peers of one resource that always go together."""

    host: str
    resource: str
    number: int


class DesiredSender:
    """Sends hosts what their resources should be: what has changed, and all of it from time to time."""

    def __init__(self, post: Post, nats: NatsBus, lease: Lease, amounts: Callable[[], Amounts]) -> None:
        self._post = post
        self._nats = nats
        self._lease = lease
        self._amounts = amounts
        self._groups: dict[PeerGroup, tuple[str, ...]] = {}  # their peers
        self._group_of: dict[tuple[str, str], PeerGroup] = {}  # by resource and peer
        self._marked: dict[PeerGroup, None] = {}  # to be sent, in this order
        self._next: list[PeerGroup] = []  # those whose turn to be said again is still to come
        self._term = 0  # of what was sent last
        self._number = 0
        self._new = asyncio.Event()
        self._task = LoopTask(self._run)

    def configure(self, config: Config) -> None:
        self._groups, self._group_of = {}, {}
        peers = [p.name for p in config.peer]
        for resource in config.resource:
            if resource.host not in self._post.hosts:
                continue
            served = [p for p in peers if resource.peer in ("*", p)]
            for number, group in enumerate(desired.groups(served)):
                key = PeerGroup(resource.host, resource.name, number)
                self._groups[key] = tuple(group)
                self._group_of |= {(resource.name, peer): key for peer in group}
        self._marked = dict.fromkeys(self._groups)
        self._next = []

    def start(self) -> None:
        """Begin to send, unless it does so already."""
        self._task.begin()

    async def stop(self) -> None:
        await self._task.end()

    def take(self, changes: DesiredAmounts) -> None:
        for resource, amounts in changes.amounts.items():
            self._mark((resource, peer) for peer in amounts)

    def _mark(self, keys: Iterable[tuple[str, str]]) -> None:
        found = [self._group_of[key] for key in keys if key in self._group_of]
        if found:
            self._marked |= dict.fromkeys(found)
            self._new.set()

    async def _run(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await self._new.wait()
                await asyncio.sleep(GATHER)
            self._new.clear()
            self._look()

    def _look(self) -> None:
        renewed = self._amounts().take_renewed()
        if not self._lease.may_act(steady()) or not self._nats.connected:
            self._term = 0  # all is said when it may, and can
            return
        self._marked |= dict.fromkeys(self._group_of[key] for key in renewed if key in self._group_of)
        if self._lease.term != self._term:
            self._term = self._lease.term
            self._marked |= dict.fromkeys(self._groups)
        self._next = self._next or list(self._groups)
        for _ in range(min(len(self._next), math.ceil(len(self._groups) * LOOK / AGAIN))):
            self._marked[self._next.pop()] = None
        marked, self._marked = self._marked, {}
        for group in marked:
            self._send(group)

    def _send(self, group: PeerGroup) -> None:
        section, entry = self._amounts().resources.get(group.resource), self._amounts().entry
        if section is None:
            return
        said = (
            desired_amount(section, peer, found, time.time())
            for peer in self._groups[group]
            if (found := entry(group.resource, peer)) is not None
        )
        self._number += 1
        part = DesiredPart(
            instance=self._lease.instance,
            term=self._lease.term,
            number=self._number,
            at=time.time(),
            resource=group.resource,
            amounts=tuple(one for one in said if one is not None),
        )
        sealed = self._post.seal(Kind.DESIRED, group.host, desired.encode(part))
        to = subject(DESIRED, group.host, self._post.name, group.resource, str(group.number))
        self._nats.send(to, sealed)


class AllocatorTwins:
    """Reads what an allocator of the same name and key sends: of two with leases of two stores, one yields."""

    def __init__(self, post: Post, lease: Lease, yielded: Callable[[str], None]) -> None:
        """`yielded` gets the instance that has a newer lease."""
        self._post = post
        self._lease = lease
        self._yielded = yielded
        self._heard: dict[str, float] = {}  # by instance, steady seconds

    @property
    def subject(self) -> str:
        return f"{subject(DESIRED, '*', self._post.name)}.>"

    def take(self, message: bytes) -> None:
        plain = self._post.open_own(Kind.DESIRED, message)
        if plain is None:
            return
        try:
            part = desired.decode(plain)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            self._post.counters["garbage"] += 1
            return
        if part.instance == self._lease.instance:
            return
        now = steady()
        self._heard = {name: at for name, at in self._heard.items() if now - at < TWIN} | {part.instance: now}
        if self._lease.hear(part.instance, part.term, now):
            self._post.counters["second_allocator"] += 1
            self._yielded(part.instance)

    def is_there(self, instance: str) -> bool:
        return steady() - self._heard.get(instance, -math.inf) < TWIN


class ProvidedTaker:
    """Publishes Observed and Applied of other hosts' resources, to the allocator here."""

    def __init__(self, post: Post, publish: Callable[[object], None], lease: Lease, twins: AllocatorTwins) -> None:
        self._post = post
        self._publish = publish
        self._lease = lease
        self._twins = twins
        self._resources: dict[str, list[str]] = {}  # by host
        self._rounds: dict[str, Rounds] = {}  # by host
        self._failures: dict[tuple[str, str], str] = {}  # by resource and peer

    @property
    def subject(self) -> str:
        return subject(PROVIDED, self._post.name, "*")

    def configure(self, config: Config) -> None:
        self._resources, self._rounds = {}, {}
        for resource in config.resource:
            self._resources.setdefault(resource.host, []).append(resource.name)

    def take(self, message: bytes) -> None:
        found = self._post.read(Kind.PROVIDED, message, "provide", provided.decode)
        if found is None:
            return
        host, part = found
        own = self._resources.get(host.name, [])
        if not all(map(is_sound, part.rows)) or part.index >= part.count:
            self._post.counters["garbage"] += 1
            return
        if {*part.looked, *(row.resource for row in part.rows)} - set(own):
            self._post.counters["unknown_resource"] += 1
        self._compare_terms(part)
        for applied in part.applied:
            if applied.resource in own:
                self._failures[applied.resource, applied.peer] = applied.failure
                self._publish(applied)
        for seen in observations(self._rounds.setdefault(host.name, Rounds()).add(part), own):
            self._publish(seen)

    def why_not(self, resource: str, peer: str) -> str:
        """Why another host does not give the peer what is wanted; empty if it does, or the resource is of this host."""
        host = next((name for name, own in self._resources.items() if resource in own), "")
        if host in self._post.hosts and host not in self._rounds:
            return f"{host} has said nothing of it yet"
        return self._failures.get((resource, peer), "")

    def _compare_terms(self, part: ProvidedPart) -> None:
        """The own term must be above what a host has had, unless somebody is there who has that one."""
        owner, lease = part.owner, self._lease
        if owner is not None and owner.instance != lease.instance and not self._twins.is_there(owner.instance):
            lease.raise_term(owner.term + (owner.term == lease.term))
