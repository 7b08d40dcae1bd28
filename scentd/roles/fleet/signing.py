"""A profiler's epochs on their way to the stampers of other hosts, and what another profiler of this name sends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator

from scentd.bus.nats import OUTGOING, NatsBus, subject
from scentd.core.fleet import batch, seal
from scentd.core.fleet.batch import Batch, SentEpoch
from scentd.core.fleet.lease import Lease
from scentd.core.fleet.seal import Kind
from scentd.core.pairs import Pairs
from scentd.model import IssuedEpoch
from scentd.roles.fleet.post import Post
from scentd.system.clock import steady

GATHER = 0.1  # seconds in which the epochs of a group come together into one batch


class Group:
    """Networks of one stamper that always go together, and their newest epochs."""

    def __init__(self, stamper: str, number: int, networks: Iterable[str]) -> None:
        self.stamper = stamper
        self.number = number
        self.networks = frozenset(networks)
        self.epochs: dict[str, SentEpoch] = {}
        self.alarms: dict[str, SentEpoch] = {}  # since the last batch
        self.timer: asyncio.TimerHandle | None = None

    def newest(self, now: float) -> tuple[SentEpoch, ...]:
        """Those that are still of use at `now`, Unix time."""
        return tuple(e for e in self.epochs.values() if any(sent.outgoing.expires > now for sent in e.outgoing))


class OutgoingSender:
    """Sends each stamper the epochs of its networks, in batches; an alarm at once."""

    def __init__(self, post: Post, nats: NatsBus, lease: Lease) -> None:
        self._post = post
        self._nats = nats
        self._lease = lease
        self._pairs: Pairs | None = None
        self._groups: dict[str, list[Group]] = {}  # by stamper

    def configure(self, pairs: Pairs) -> None:
        self.stop()
        peers = {n.name: len(pairs.issued_pairs(n.name)) for n in pairs.config.network if n.signs}
        before = {
            (g.stamper, name): e for groups in self._groups.values() for g in groups for name, e in g.epochs.items()
        }
        self._pairs, self._groups = pairs, {}
        for host in self._post.hosts.values():
            if "stamp" in host.duties:
                grouped = batch.grouped({name: count for name, count in peers.items() if host.serves(name)})
                self._groups[host.name] = [Group(host.name, i, names) for i, names in enumerate(grouped)]
        for group in self._all():
            group.epochs = {n: before[group.stamper, n] for n in group.networks if (group.stamper, n) in before}

    def take(self, issued: IssuedEpoch) -> None:
        if self._pairs is None:
            return
        epoch = None
        for group in self._all():
            if issued.network not in group.networks:
                continue
            epoch = epoch or batch.sent_epoch(issued, self._pairs)
            group.epochs[issued.network] = epoch
            if issued.alarm:
                group.alarms[issued.network] = epoch
                self._send(group, tuple(group.alarms.values()), "alarm")
            elif group.timer is None:
                group.timer = asyncio.get_running_loop().call_later(GATHER, self._send_all, group)

    def stop(self) -> None:
        for group in self._all():
            if group.timer is not None:
                group.timer.cancel()
                group.timer = None

    def _all(self) -> Iterator[Group]:
        for groups in self._groups.values():
            yield from groups

    def _send_all(self, group: Group) -> None:
        group.timer = None
        group.alarms.clear()
        self._send(group, group.newest(time.time()))

    def _send(self, group: Group, epochs: tuple[SentEpoch, ...], *more: str) -> None:
        made = Batch(
            profiler=self._post.name,
            instance=self._lease.instance,
            term=self._lease.term,
            stamper=group.stamper,
            group=group.number,
            groups=len(self._groups[group.stamper]),
            at=time.time(),
            epochs=epochs,
        )
        signed = batch.sign(self._post.identity, made)
        sealed = self._post.seal(Kind.OUTGOING, group.stamper, signed)
        if len(sealed) > seal.MESSAGE_MAX:
            self._post.counters["too_long"] += 1
        else:
            self._nats.send(subject(OUTGOING, group.stamper, str(group.number), *more), sealed)


class TwinWatch:
    """Reads what a profiler of the same name and key sends: no epoch is used twice, and one of two yields."""

    def __init__(
        self, post: Post, lease: Lease, raise_epoch: Callable[[str, int], None], yielded: Callable[[str], None]
    ):
        """`raise_epoch` gets a network and its newest epoch; `yielded` the instance that has a newer lease."""
        self._post = post
        self._lease = lease
        self._raise_epoch = raise_epoch
        self._yielded = yielded

    @property
    def subject(self) -> str:
        return f"{OUTGOING}.>"

    def take(self, message: bytes) -> None:
        signed = self._post.open_own(Kind.OUTGOING, message)
        if signed is None:
            return
        found = batch.verified(signed, self._post.identity.public)
        if isinstance(found, str):
            self._post.counters[found] += 1
        elif found.instance != self._lease.instance:
            for epoch in found.epochs:
                self._raise_epoch(epoch.network, epoch.epoch)
            if self._lease.hear(found.instance, found.term, steady()):
                self._post.counters["second_profiler"] += 1
                self._yielded(found.instance)
