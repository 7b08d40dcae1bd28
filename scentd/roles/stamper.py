"""The stamper as a role: gives issued epochs to the packet path, and sends beacons for quiet networks.

It needs no private key. Epochs name networks and peers; this role looks up the numbers of this host's pairs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from scentd.bus.local import LocalBus
from scentd.core.pairs import Pairs
from scentd.datapath.beacon import Beacons
from scentd.model import IssuedEpoch, Outgoing
from scentd.roles.paths import Paths
from scentd.state.issued import IssuedEpochs
from scentd.wire import layout

log = logging.getLogger(__name__)

BEACON_AT = 0.6  # of an interval; then beacons carry the fragments that a verifier of the peer may lack


class StamperRole:
    """Takes every IssuedEpoch of networks that this host stamps for."""

    def __init__(self, bus: LocalBus, paths: Paths, mark_stamped: int, kept: IssuedEpochs) -> None:
        """`kept` are the files of each network's last epoch."""
        self.beacons = Beacons(mark_stamped)
        self._paths = paths
        self._kept = kept
        self._pairs: Pairs | None = None
        self._timers: set[asyncio.TimerHandle] = set()
        bus.subscribe(IssuedEpoch, self._on_epoch)

    def configure(self, pairs: Pairs) -> None:
        self._pairs = pairs

    def last_outgoing(self) -> dict[int, Outgoing]:
        """What an earlier daemon sent last, by pair, as far as it is still of use: the first packets have a scent."""
        if self._pairs is None:
            return {}
        networks = [n.name for n in self._pairs.config.network if n.stamps]
        kept = [out for issued in self._kept.read(networks) for out in issued.outgoing if out.expires > time.time()]
        tag_keys = self._pairs.tag_keys  # None without the network's private key
        return {n: o for n, o in self._by_pair(kept).items() if o.tag_key in (tag_keys(n, o.epoch) or [o.tag_key])}

    def _by_pair(self, outgoing: Iterable[Outgoing]) -> dict[int, Outgoing]:
        assert self._pairs is not None
        named = ((self._pairs.by_name.get((out.network, out.peer)), out) for out in outgoing)
        return {pair.number: out for pair, out in named if pair is not None and pair.stamps}

    def stop(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _on_epoch(self, issued: IssuedEpoch) -> None:
        if self._pairs is None:
            return
        outgoing = self._by_pair(issued.outgoing)
        if not outgoing:
            return
        self._paths.publish_epochs(outgoing)
        self._kept.write(issued)
        delay = 0.0 if issued.alarm else BEACON_AT * issued.interval
        loop = asyncio.get_running_loop()
        self._timers = {timer for timer in self._timers if timer.when() > loop.time() and not timer.cancelled()}
        self._timers.add(loop.call_later(delay, self._send_beacons, issued.epoch, set(outgoing), issued.alarm))

    def _send_beacons(self, epoch: int, numbers: set[int], alarm: bool) -> None:
        """Send the fragments of an epoch that no packet has carried; all fragments of an alarm.

        Of several verifiers of a peer each has seen some packets only, and nobody here knows which: all get all.
        """
        if self._pairs is None:
            return
        for number in numbers:
            pair, out = self._pairs.by_number.get(number), self._paths.outgoing(number)
            if pair is None or out is None or out.epoch != epoch:
                continue
            sent = 0 if alarm or pair.peer.has_several_verifiers else self._paths.sent_bits(number, epoch)
            missing = [i for i in range(layout.FRAGMENTS) if not sent >> i & 1]
            if missing:
                self.beacons.send(pair, out, missing)
