"""The receiving half of the daemon: fragments to profiles to views, and policies looking at them."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable

from scentd import config as schema
from scentd.assemble import Assembler, cut
from scentd.control.allocator import Allocator
from scentd.datapath import link
from scentd.model import View
from scentd.pairs import Pair, Pairs
from scentd.readings import Event
from scentd.tables import Fragment
from scentd.view import NetworkView
from scentd.wire import keys, layout, maps, profile

log = logging.getLogger(__name__)

ALARM_THREAT = 0.5  # a glance from here on is acted on before the next tick


class Receiver:
    """What workers accepted, made into views. `report(event, fields)` is told of every profile."""

    def __init__(self, allocator: Allocator, report: Callable[[str, dict], None]) -> None:
        self.counters: Counter[str] = Counter()  # profiles, error:REASON, policy_errors
        self._allocator = allocator
        self._report = report
        self._assembler = Assembler()
        self._pairs: Pairs | None = None
        self._views: dict[int, NetworkView] = {}

    def configure(self, pairs: Pairs) -> None:
        """A view for each pair that is verified; those of unchanged peers are kept."""
        before = self._pairs.by_number if self._pairs is not None else {}
        views = {}
        for pair in pairs.all:
            if pair.peer.verify:
                old = self._views.get(pair.number)
                same = pair.number in before and before[pair.number].peer == pair.peer
                views[pair.number] = old if same and old is not None else new_view(pair)
        self._pairs, self._views = pairs, views
        self._assembler.keep_only(set(pairs.by_number))

    def view_of(self, pair: Pair) -> NetworkView | None:
        return self._views.get(pair.number)

    def take(self, message: link.FromWorker) -> None:
        """A worker's message: fragments are looked at now, addresses with the next round."""
        if isinstance(message, link.Fragments):
            changed = {f.pair for f in message.fragments if self._on_fragment(f)}
            if changed:
                self._decide(changed)
        elif isinstance(message, link.Report):
            for pair, addresses in message.nodes.items():
                self.take_nodes(pair, addresses)

    def take_nodes(self, pair: int, addresses: list[bytes]) -> None:
        """Source addresses of accepted packets."""
        if pair in self._views:
            self._views[pair].take_nodes(addresses, time.time())

    def take_event(self, event: Event) -> None:
        """What the offload has to say: a new epoch's glance, or a whole profile."""
        view = self._views.get(event.pair)
        if view is None:
            return
        now = time.time()
        view.take_nodes([event.source], now)
        changed = view.take_glance(event.epoch, event.load, event.threat) and event.threat >= ALARM_THREAT
        if event.kind == maps.EVENT_PROFILE:
            for fragment in cut(event.pair, event.epoch, event.sealed, (event.load, event.threat), event.source):
                sealed = self._assembler.add(fragment)
                changed |= sealed is not None and self._on_sealed(fragment, sealed, view, now)
        if changed:
            self._decide({event.pair})

    def tick(self) -> None:
        """Once a second: policies look at everything."""
        self._decide(set(self._views))

    def _on_fragment(self, fragment: Fragment) -> bool:
        """Whether policies should look at the pair now."""
        view = self._views.get(fragment.pair)
        if view is None:
            return False
        now = time.time()
        if fragment.source:  # unknown if the queue began the epoch and the offload went on
            view.take_nodes([fragment.source], now)
        alarmed = view.take_glance(fragment.epoch, fragment.load, fragment.threat) and fragment.threat >= ALARM_THREAT
        sealed = self._assembler.add(fragment)
        return (sealed is not None and self._on_sealed(fragment, sealed, view, now)) or alarmed

    def _on_sealed(self, fragment: Fragment, sealed: bytes, view: NetworkView, now: float) -> bool:
        assert self._pairs is not None  # there are no views without pairs
        pair = self._pairs.by_number[fragment.pair]
        seal_key = pair.receive_keys(keys.period_of(fragment.epoch)).seal
        body = profile.open_sealed(sealed, seal_key, pair.public.verifier(), pair.public.key_id, fragment.epoch)
        if isinstance(body, int):
            reason = layout.PROFILE_ERRORS[body]
            self.counters[f"error:{reason}"] += 1
            log.warning("peer %s: a whole profile of epoch %d is wrong: %s", view.network, fragment.epoch, reason)
            return False
        self.counters["profiles"] += 1
        made = view.take_profile(body, now)
        self._report("profile", {"network": made.network} | (describe(view, now) or {}))
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
            self.counters["policy_errors"] += 1
            log.exception("the policies failed on a round; the next one tries again")


def new_view(pair: Pair) -> NetworkView:
    return NetworkView(pair.peer.name, pair.pseudonym_key(), schema.prefixes(pair.peer.addresses), pair.slots())


def describe(view: NetworkView, now: float) -> dict | None:
    """A view for status and monitor; None before its first profile."""
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
