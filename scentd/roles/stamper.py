"""The stamper as a role: gives issued epochs to the packet path, and sends beacons for quiet networks.

It needs no private key. Epochs name networks and peers; this role looks up the numbers of this host's pairs.
"""

from __future__ import annotations

import asyncio
import logging

from scentd.bus.local import LocalBus
from scentd.core.pairs import Pairs
from scentd.datapath.beacon import Beacons
from scentd.model import IssuedEpoch
from scentd.roles.paths import Paths
from scentd.wire import layout

log = logging.getLogger(__name__)

BEACON_AT = 0.6  # of an interval; then beacons carry the fragments that no packet has carried


class StamperRole:
    """Takes every IssuedEpoch of networks that this host stamps for."""

    def __init__(self, bus: LocalBus, paths: Paths, mark_stamped: int) -> None:
        self.beacons = Beacons(mark_stamped)
        self._paths = paths
        self._pairs: Pairs | None = None
        self._timers: set[asyncio.TimerHandle] = set()
        bus.subscribe(IssuedEpoch, self._on_epoch)

    def configure(self, pairs: Pairs) -> None:
        self._pairs = pairs

    def stop(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _on_epoch(self, issued: IssuedEpoch) -> None:
        if self._pairs is None:
            return
        pairs = self._pairs.by_name
        named = ((pairs.get((out.network, out.peer)), out) for out in issued.outgoing)
        outgoing = {pair.number: out for pair, out in named if pair is not None and pair.stamps}
        if not outgoing:
            return
        self._paths.publish_epochs(outgoing)
        delay = 0.0 if issued.alarm else BEACON_AT * issued.interval
        loop = asyncio.get_running_loop()
        self._timers = {timer for timer in self._timers if timer.when() > loop.time() and not timer.cancelled()}
        self._timers.add(loop.call_later(delay, self._send_beacons, issued.epoch, set(outgoing), issued.alarm))

    def _send_beacons(self, epoch: int, numbers: set[int], alarm: bool) -> None:
        """Send the fragments of an epoch that no packet has carried; all fragments of an alarm."""
        if self._pairs is None:
            return
        for number in numbers:
            pair, out = self._pairs.by_number.get(number), self._paths.outgoing(number)
            if pair is None or out is None or out.epoch != epoch:
                continue
            sent = 0 if alarm else self._paths.sent_bits(number, epoch)
            missing = [i for i in range(layout.FRAGMENTS) if not sent >> i & 1]
            if missing:
                self.beacons.send(pair, out, missing)
