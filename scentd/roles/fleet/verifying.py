"""Views between hosts: a verifier sends what it has verified, an allocator makes one view of what all send."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Container, Iterable
from typing import NamedTuple

from msgspec.structs import replace

from scentd.bus.nats import VIEWS, NatsBus, subject
from scentd.config.sections import Config, Peer
from scentd.control.status import PeerStatus
from scentd.core import shared
from scentd.core.allocate.actions.quarantine import sender_text
from scentd.core.fleet import views
from scentd.core.fleet.batch import grouped
from scentd.core.fleet.samples import is_node
from scentd.core.fleet.seal import Kind
from scentd.core.fleet.views import QUARANTINED_MAX, HostReports, PooledView, Report
from scentd.model import Barred, Notice, View, Views
from scentd.prefix import Prefix
from scentd.roles.fleet.post import Post
from scentd.roles.verifier import new_view, profile_status
from scentd.wire import keys

log = logging.getLogger(__name__)

AFFECTED_SUM = 16_384  # addresses in one message
GATHER = 0.2  # seconds in which the views of a group's peers come together into one message


class ReportSender:
    """Sends each allocator what is new of the peers that are verified here: together, and an alarm at once."""

    def __init__(self, post: Post, nats: NatsBus) -> None:
        self._post = post
        self._nats = nats
        self._to: list[str] = []
        self._group_of: dict[str, int] = {}  # by peer
        self._newest: dict[int, dict[str, Report]] = {}  # by group and peer
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._quarantined: tuple[str, ...] = ()

    def configure(self, config: Config) -> None:
        self._to = [host.name for host in self._post.hosts.values() if "allocate" in host.duties]
        groups = grouped({peer.name: 2 for peer in config.peer if peer.verify})
        self._group_of = {name: number for number, group in enumerate(groups) for name in group}
        reports = {name: said for group in self._newest.values() for name, said in group.items()}
        self._newest = {
            number: {name: reports[name] for name in group if name in reports} for number, group in enumerate(groups)
        }

    def take(self, seen: Views) -> None:
        if not self._to:
            return
        for view in seen.views:
            number = self._group_of.get(view.peer)
            if number is None or not view.signed:
                continue
            before, said = self._newest[number].get(view.peer), views.report(view)
            if said == before:
                continue
            self._newest[number][view.peer] = said
            if view.alarm_at and (before is None or said.threat > before.threat):
                self._send(number)
            else:
                self._soon(number)

    def take_barred(self, barred: Barred) -> None:
        """Whom this host itself has quarantined: the allocators are told, and leave it to this host."""
        before, self._quarantined = self._quarantined, tuple(sorted(map(sender_text, barred.until)))[:QUARANTINED_MAX]
        if self._to and self._quarantined != before:
            self._soon(0)

    def _soon(self, number: int) -> None:
        if number not in self._timers:
            self._timers[number] = asyncio.get_running_loop().call_later(GATHER, self._send, number)

    def stop(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _send(self, number: int) -> None:
        if timer := self._timers.pop(number, None):
            timer.cancel()
        reports = tuple(self._newest.get(number, {}).values())
        if sum(len(said.affected) for said in reports) > AFFECTED_SUM:  # who does not fit into the message is cut
            share = AFFECTED_SUM // len(reports)
            reports = tuple(replace(said, affected=said.affected[:share]) for said in reports)
        for name in self._to:
            quarantined = self._quarantined if number == 0 else None
            plain = views.encode(HostReports(self._post.serial(), time.time(), reports, quarantined))
            sealed = self._post.seal(Kind.VIEWS, name, plain)
            self._nats.send(subject(VIEWS, name, self._post.name, str(number)), sealed)


class Known(NamedTuple):
    peer: Peer
    usable: tuple[str, ...]  # its public keys that are not revoked
    shared: tuple[Prefix, ...]

    def goes_on(self, before: Known, revoked: Container[str]) -> bool:
        """Whether what was known of a peer stays: it may have other keys, but none that it had may be revoked."""
        unkeyed = [replace(known.peer, public_key="", next_public_key="") for known in (self, before)]
        same = unkeyed[0] == unkeyed[1] and self.shared == before.shared
        return same and not any(text in revoked for text in before.usable)


class ReportTaker:
    """Makes one View of each peer of what other hosts' verifiers say, and publishes it to the allocator here."""

    def __init__(self, post: Post, publish: Callable[[object], None]) -> None:
        self._post = post
        self._publish = publish
        self._views: dict[str, PooledView] = {}
        self._peers: dict[str, Known] = {}  # of what the views were made
        self._quarantined: dict[str, frozenset[str]] = {}  # by verifier

    @property
    def subject(self) -> str:
        return f"{subject(VIEWS, self._post.name)}.>"

    def configure(self, config: Config, revoked: Container[str]) -> None:
        """`revoked`: public keys by which nothing is accepted. What is known of peers stays, under other keys, too."""
        before, self._peers = self._peers, {}
        everybody = shared.shared(config.peer)
        for peer in config.peer if config.bus.allocates else ():
            usable = tuple(text for text in peer.public_keys if text not in revoked)
            self._peers[peer.name] = known = Known(peer, usable, everybody[peer.name])
            publics = list(map(keys.parse_public, usable))
            if peer.name in before and known.goes_on(before[peer.name], revoked):
                self._views[peer.name].set_publics(publics)
            else:
                view = new_view(peer)
                view.shared = known.shared
                self._views[peer.name] = PooledView(view, publics)
        self._views = {name: view for name, view in self._views.items() if name in self._peers}

    def take(self, message: bytes) -> None:
        found = self._post.read(Kind.VIEWS, message, "verify", views.decode)
        if found is None:
            return
        (host, said), now = found, time.time()
        for one in said.reports:
            pooled = self._views.get(one.peer)
            why_not = "unknown_peer" if pooled is None else pooled.take(host.name, one, now)
            if why_not:
                self._post.counters[why_not] += 1
        if said.quarantined is not None:
            self._tell_quarantined(host.name, said.quarantined)
        self._publish_all({one.peer for one in said.reports}, now)

    def _tell_quarantined(self, verifier: str, senders: tuple[str, ...]) -> None:
        """Whom a verifier has cut off by itself is its own affair; people here are told."""
        before, now = (
            self._quarantined.get(verifier, frozenset()),
            frozenset(filter(is_node, senders[:QUARANTINED_MAX])),
        )
        self._quarantined[verifier] = now
        for sender in sorted(before ^ now):
            begins = sender in now
            log.info("%s is %squarantined on %s", sender, "" if begins else "no longer ", verifier)
            self._publish(Notice("quarantined", {"host": verifier, "sender": sender, "begins": begins}))

    async def catch_up(self, nats: NatsBus) -> None:
        """Take what was sent last, before this host was there. Raises OSError, NatsError."""
        for host in self._post.hosts.values():
            number = 0
            while "verify" in host.duties and self._views:
                message = await nats.last(subject(VIEWS, self._post.name, host.name, str(number)))
                if message is None:
                    break
                self.take(message)
                number += 1

    def status(self, now: float) -> list[PeerStatus]:
        """Of each peer."""
        return [self._status(peer, usable, now) for peer, usable, _ in self._peers.values()]

    def _status(self, peer: Peer, usable: tuple[str, ...], now: float) -> PeerStatus:
        view = self.view_of(peer.name, now)
        ids = {text: keys.parse_public(text).key_id.hex() for text in peer.public_keys}
        return PeerStatus(
            name=peer.name,
            network="",
            key_id=ids[peer.public_key],
            next_key_id=ids.get(peer.next_public_key, ""),
            highest_epoch=view.profile.epoch if view is not None else 0,
            verified=bool(usable),
            revoked=[key_id for text, key_id in ids.items() if text not in usable],
            profile=profile_status(view, now),
        )

    def view_of(self, peer: str, now: float) -> View | None:
        return self._views[peer].view(now) if peer in self._views else None

    def _publish_all(self, peers: Iterable[str], now: float) -> None:
        pooled = (self._views[peer] for peer in peers if peer in self._views)
        found = [view for each in pooled if (view := each.view(now)) is not None]
        if found:
            self._publish(Views(tuple(found)))
