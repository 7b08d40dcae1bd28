"""Epochs that other hosts have signed: a stamper takes them, once it has checked batch and profiles."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Container
from typing import NamedTuple

from scentd.bus.nats import OUTGOING, NatsBus, subject
from scentd.config.bus import BusHost
from scentd.config.sections import Config
from scentd.core.fleet import batch
from scentd.core.fleet.batch import Batch, SentEpoch
from scentd.core.fleet.order import MAX_FUTURE, is_late
from scentd.core.fleet.seal import Kind
from scentd.core.leaps import is_leapt
from scentd.model import IssuedEpoch
from scentd.roles.fleet.post import Post
from scentd.wire import keys

log = logging.getLogger(__name__)

FORGET = 60.0  # seconds without its owner, after which a term counts no more: one of a clock that was wrong is no fence


class Term(NamedTuple):
    number: int
    heard: float  # steady seconds


class OutgoingTaker:
    """Publishes each new epoch of a network that is stamped here and signed elsewhere."""

    def __init__(self, post: Post, publish: Callable[[object], None]) -> None:
        self._post = post
        self._publish = publish
        self._terms: dict[str, Term] = {}  # the highest of each profiler
        self._epochs: dict[str, int] = {}  # the highest of each network
        self._publics: dict[str, list[keys.Public]] = {}  # of networks that are stamped here and signed elsewhere

    @property
    def subject(self) -> str:
        return f"{subject(OUTGOING, self._post.name)}.>"

    @property
    def needed(self) -> bool:
        return bool(self._publics)

    def configure(self, config: Config, revoked: Container[str]) -> None:
        """`revoked`: public keys by which nothing is accepted."""
        self._publics = {
            network.name: [
                keys.parse_public(text)
                for text in (network.public_key, network.next_public_key)
                if text and text not in revoked
            ]
            for network in config.network
            if network.stamps and not network.signs
        }

    async def catch_up(self, nats: NatsBus) -> None:
        """Take what was sent last, before this host was there. Raises OSError, NatsError."""
        if not self._publics:
            return
        groups, number = 1, 0
        while number < groups:
            for more in ((), ("alarm",)):
                message = await nats.last(subject(OUTGOING, self._post.name, str(number), *more))
                found = self.take(message) if message is not None else None
                groups = max(groups, found.groups) if found is not None else groups
            number += 1

    def take(self, message: bytes) -> Batch | None:
        """The batch, if it is a profiler's."""
        opened = self._post.open(Kind.OUTGOING, message, "sign")
        if opened is None:
            return None
        host, signed = opened
        found = batch.verified(signed, self._post.public(host.name))
        why_not = found if isinstance(found, str) else self._why_not(found, host)
        self._post.counters[why_not or "taken"] += 1
        if why_not or isinstance(found, str):
            return None
        self._terms[host.name] = Term(found.term, time.monotonic())
        for epoch in found.epochs:
            if epoch.epoch > self._highest(epoch.network):  # each batch repeats the last epochs of its group
                self._take_epoch(host, epoch)
        return found

    def _why_not(self, found: Batch, host: BusHost) -> str:
        """The name of what is wrong with a batch; "" for nothing."""
        if (found.profiler, found.stamper) != (host.name, self._post.name):
            return "garbage"
        if is_late(found.at, time.time()):
            return "wrong_clock"
        last = self._terms.get(host.name)
        older = last is not None and found.term < last.number and time.monotonic() - last.heard < FORGET
        return "old_term" if older else ""

    def _highest(self, network: str) -> int:
        """The network's highest epoch; none, if it is of a clock that was wrong."""
        highest = self._epochs.get(network, 0)
        return 0 if is_leapt(highest, time.time(), MAX_FUTURE) else highest

    def _take_epoch(self, host: BusHost, epoch: SentEpoch) -> None:
        issued = self._checked(host, epoch)
        if isinstance(issued, str):
            self._post.counters[issued] += 1
            return
        self._epochs[epoch.network] = epoch.epoch
        self._publish(issued)

    def _checked(self, host: BusHost, epoch: SentEpoch) -> IssuedEpoch | str:
        """An epoch that may be stamped; or the name of what is wrong with it."""
        network = epoch.network
        if network not in self._publics:
            return "unknown_network"
        if not host.serves(network):
            return "not_allowed"
        issued = batch.checked(epoch, self._publics[network])
        if issued is None:
            log.error("network %s: %s sent a profile that network.public_key did not sign", network, host.name)
            return "wrong_profile"
        if issued.epoch > time.time() + MAX_FUTURE:
            return "future"
        if all(out.expires <= time.time() for out in issued.outgoing):
            return "expired"
        return issued
