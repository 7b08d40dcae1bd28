"""The verifier as a role: makes views of peers from accepted scents. It holds the pairs' derived keys, no private key.

Fragments become whole profiles. Profiles and glances become Views, which name their peer.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable

import msgspec

from scentd.bus.local import LocalBus
from scentd.config.sections import Peer
from scentd.control.status import AFFECTED_MAX, Glance, PeerStatus, ProfileStatus
from scentd.core.allocate.assemble import Assembler, cut
from scentd.core.allocate.view import ALARM_THREAT, PeerView
from scentd.core.offload.decode import OffloadEvent, PairState
from scentd.core.pairs import Pair, Pairs
from scentd.core.profile.issue import metric_slots
from scentd.core.tables import EpochRow
from scentd.model import Fragment, Notice, StatedLag, View, Views
from scentd.prefix import prefixes
from scentd.wire import keys, layout, maps, profile

log = logging.getLogger(__name__)


class VerifierRole:
    """Publishes Views of what is new: of a peer at once after a new profile or alarm, of others once a second."""

    def __init__(self, bus: LocalBus) -> None:
        self.counters: Counter[str] = Counter()  # profiles, error:REASON
        self._bus = bus
        self._assembler = Assembler()
        self._pairs: Pairs | None = None
        self._views: dict[int, PeerView] = {}
        self._key_ids: dict[int, tuple[int, bytes]] = {}  # of each pair: its newest epoch, and the keys of that

    def configure(self, pairs: Pairs) -> None:
        """Make a view for each pair that is verified; views of unchanged peers stay."""
        before = self._pairs.by_number if self._pairs is not None else {}
        views = {}
        for pair in pairs.all:
            if pair.verifies:
                old = self._views.get(pair.number)
                same = pair.number in before and has_same_view(before[pair.number], pair)
                view = views[pair.number] = old if same and old is not None else new_view(pair.peer)
                view.shared = pairs.shared[pair.peer.name]
        self._pairs, self._views = pairs, views
        self._key_ids = {n: ids for n, ids in self._key_ids.items() if n in views}
        self._assembler.keep_only(set(pairs.by_number))

    def view_of(self, peer: str, now: float) -> View | None:
        """The newest View of a peer; None before its first profile."""
        numbers = [p.number for p in self._pairs.all if p.peer.name == peer] if self._pairs is not None else []
        return next(iter(self._newest(numbers, now)), None)

    def take_fragments(self, fragments: Iterable[Fragment]) -> None:
        """Take fragments that a queue has accepted."""
        changed = {f.pair for f in fragments if self._on_fragment(f)}
        if changed:
            self._publish(changed)

    def take_state(self, pair: int, state: PairState) -> None:
        """Take the fragments of a pair's newest profile that the program has."""
        glance = state.load, state.threat
        self.take_fragments(cut(pair, state.highest, state.sealed, glance, state.source, state.key_ids, state.seen))

    def forget(self, pair: int) -> None:
        """Forget what a pair's packets have said: its epochs were ahead of all clocks."""
        assert self._pairs is not None  # there are no pairs to forget before that
        if pair in self._views:
            self._views[pair] = new_view(self._pairs.by_number[pair].peer)
        self._key_ids.pop(pair, None)
        self._assembler.keep_only(set(self._pairs.by_number) - {pair})

    def take_nodes(self, pair: int, addresses: list[bytes]) -> None:
        """Take the source addresses of accepted packets."""
        if pair in self._views:
            self._views[pair].take_nodes(addresses, time.time())

    def take_event(self, event: OffloadEvent) -> None:
        """Take an event of the offload: a new epoch's glance, or a whole profile."""
        view = self._views.get(event.pair)
        if view is None:
            return
        now = time.time()
        view.take_nodes([event.source], now)
        self._take_keys(event.pair, event.epoch, event.key_ids)
        glance = event.load, event.threat
        changed = view.take_glance(event.epoch, *glance, now) and event.threat >= ALARM_THREAT
        if event.kind == maps.EVENT_PROFILE:
            for fragment in cut(event.pair, event.epoch, event.sealed, glance, event.source, event.key_ids):
                sealed = self._assembler.add(fragment)
                changed |= sealed is not None and self._on_sealed(fragment, sealed, view, now)
        if changed:
            self._publish({event.pair})

    def tick(self) -> None:
        """Once a second: publish the views of which something is new."""
        self._publish([number for number, view in self._views.items() if view.has_news])

    def _on_fragment(self, fragment: Fragment) -> bool:
        """Take a fragment; whether policies must see the pair's view now."""
        view = self._views.get(fragment.pair)
        if view is None:
            return False
        now = time.time()
        if fragment.source:  # empty if the queue began the epoch and the offload went on
            view.take_nodes([fragment.source], now)
        self._take_keys(fragment.pair, fragment.epoch, fragment.key_ids)
        news = view.take_glance(fragment.epoch, fragment.load, fragment.threat, now)
        sealed = self._assembler.add(fragment)
        complete = sealed is not None and self._on_sealed(fragment, sealed, view, now)
        return complete or (news and fragment.threat >= ALARM_THREAT)

    def _on_sealed(self, fragment: Fragment, sealed: bytes, view: PeerView, now: float) -> bool:
        assert self._pairs is not None  # there are no views without pairs
        secret = self._pairs.by_number[fragment.pair].secret_of(fragment.key_ids)
        if secret is None:  # one of the keys has just left the configuration
            return False
        pair_keys, public = secret.receive_keys(keys.period_of(fragment.epoch)), secret.public
        signed = profile.unseal(pair_keys, sealed)
        body = profile.open_signed(signed, public.verifier(), public.key_id, fragment.epoch)
        if isinstance(body, int):
            reason = layout.PROFILE_ERRORS[body]
            self.counters[f"error:{reason}"] += 1
            log.warning("peer %s: a whole profile of epoch %d is wrong: %s", view.peer, fragment.epoch, reason)
            return False
        self.counters["profiles"] += 1
        newest = view.take_profile(body, secret.pseudonym_key, now, signed)
        if newest is None:
            log.info("peer %s: the profile of epoch %d came after a newer one", view.peer, fragment.epoch)
            return False
        self._bus.publish(StatedLag(fragment.pair, body.lag))
        self._bus.publish(Notice("profile", {"peer": newest.peer, **view_fields(view.view(now), now)}))
        return True

    def _take_keys(self, pair: int, epoch: int, key_ids: bytes) -> None:
        self._key_ids[pair] = max((epoch, key_ids), self._key_ids.get(pair, (0, b"")))

    def _publish(self, numbers: Iterable[int]) -> None:
        """Publish the Views of these pairs' peers; of several views of a peer only the newest."""
        numbers = list(numbers)
        for number in numbers:
            if number in self._views:
                self._views[number].has_news = False
        if newest := self._newest(numbers, time.time()):
            self._bus.publish(Views(tuple(newest)))

    def _newest(self, numbers: Iterable[int], now: float) -> list[View]:
        newest: dict[str, View] = {}
        for number in sorted(numbers):
            view = self._views[number].view(now) if number in self._views else None
            if view is not None and (view.peer not in newest or newest[view.peer].profile.epoch < view.profile.epoch):
                newest[view.peer] = view
        return list(newest.values())

    # -- status ------------------------------------------------------------

    def status(self, pair: Pair, mark: EpochRow, now: float) -> PeerStatus:
        highest_epoch, lag = mark.epoch, mark.lag
        view, (_, newest) = self._views.get(pair.number), self._key_ids.get(pair.number, (0, b""))
        key_ids = [keys.parse_public(text).key_id.hex() for text in pair.peer.public_keys]
        return PeerStatus(
            name=pair.peer.name,
            network=pair.network.name,
            key_id=key_ids[0],
            next_key_id=key_ids[1] if key_ids[1:] else "",
            highest_epoch=highest_epoch,
            lag=lag,
            verified=pair.verifies,
            revoked=[key.key_id.hex() for key in pair.revoked],
            signed_by=newest[:4].hex(),
            made_for=newest[4:].hex(),
            profile=profile_status(view.view(now) if view is not None else None, now),
        )


def new_view(peer: Peer) -> PeerView:
    return PeerView(peer.name, prefixes(peer.addresses), metric_slots(peer.metrics))


def has_same_view(before: Pair, pair: Pair) -> bool:
    """Whether what is known of the peer holds on: new keys are no reason to forget it, stolen ones are."""
    same = before.peer.addresses == pair.peer.addresses and before.slots() == pair.slots()
    return same and set(pair.revoked) <= set(before.revoked)


def profile_status(view: View | None, now: float) -> ProfileStatus | None:
    """None before the first profile."""
    if view is None:
        return None
    newest, affected = view.profile, sorted(map(str, view.affected))
    return ProfileStatus(
        epoch=newest.epoch,
        interval=newest.interval,
        age=round(now - view.received_at, 1),
        overall=newest.overall,
        levels=dict(sorted(newest.levels.items())),
        glance=Glance(round(view.glance_load, 3), round(view.glance_threat, 3)),
        nodes=len(view.nodes),
        affected=affected[:AFFECTED_MAX],
        affected_count=len(affected),
    )


def view_fields(view: View | None, now: float) -> dict:
    """A view's fields for `scentd monitor`."""
    status = profile_status(view, now)
    return {} if status is None else msgspec.to_builtins(status)
