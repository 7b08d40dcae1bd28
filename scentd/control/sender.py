"""The sending half of the daemon: profilers, what they publish to the packet path, beacons."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from scentd import config as schema
from scentd.control.epochs import Epochs, slot_id
from scentd.control.paths import Paths
from scentd.control.profiler import Profiler
from scentd.datapath.beacon import Beacons
from scentd.errors import ScentdError
from scentd.pairs import Pairs
from scentd.wire import keys, layout

log = logging.getLogger(__name__)

BEACON_AT = 0.6  # of an interval: what has not left by then goes in beacons


def issued_slot(identity: keys.Identity) -> bytes:
    return slot_id("issued", identity.public.raw)


class Sender:
    """A profiler for each network that collects. `report(event, fields)` is told of every epoch and alarm."""

    def __init__(self, paths: Paths, mark_stamped: int, report: Callable[[str, dict], None]) -> None:
        self.beacons = Beacons(mark_stamped)
        self.profilers: dict[str, Profiler] = {}
        self._paths = paths
        self._report = report
        self._pairs: Pairs | None = None

    async def replace(self, config: schema.Config, pairs: Pairs, epochs: Epochs, before: Epochs | None = None) -> None:
        """Serve this configuration. Raises the first HostError of a network that had no sources, once all others run.

        The old profilers issue nothing more before the new ones begin: no epoch is used
        twice. `before` is the epoch file that was in use until now.
        """
        old, self.profilers, self._pairs = self.profilers, {}, pairs
        for profiler in old.values():
            await profiler.pause()
        if before is not None:
            epochs.raise_to(before)
        failed: list[ScentdError] = []
        for network in config.network:
            if not network.collect:
                continue
            try:
                made = await self._open(network, pairs, old)
            except ScentdError as error:
                failed.append(error)
                continue
            made.begin(epochs, issued_slot(pairs.identities[network.name]))
            self.profilers[network.name] = made
        for unused in old.values():
            await unused.stop()
        if failed:
            raise failed[0]

    async def stop(self) -> None:
        for profiler in self.profilers.values():
            await profiler.stop()

    async def _open(self, network: schema.Network, pairs: Pairs, old: dict[str, Profiler]) -> Profiler:
        """A profiler with its sources open; the old one goes on, for the new pairs, where that fails."""
        identity, served = pairs.identities[network.name], pairs.of_network(network.name)
        made = Profiler(network, identity, served, self._paths.publish_epochs, self._on_event)
        try:
            await made.open(old.get(network.name))
        except ScentdError as error:
            await made.stop()
            if network.name not in old:
                raise
            log.error("network %s: %s; its old sources stay", network.name, error)
            made = old.pop(network.name)
            made.serve(identity, served)
        return made

    def _on_event(self, event: str, fields: dict) -> None:
        self._report(event, fields)
        if event == "epoch":
            delay = 0.0 if fields["alarm"] else BEACON_AT * fields["interval"]
            loop = asyncio.get_running_loop()
            loop.call_later(delay, self._send_beacons, fields["network"], fields["epoch"], fields["alarm"])

    def _send_beacons(self, network: str, epoch: int, alarm: bool) -> None:
        """What of an epoch has not left in other packets; all of an alarm, at once."""
        if self._pairs is None:
            return
        for outgoing in self._paths.outgoing():
            pair = self._pairs.by_number.get(outgoing.pair)
            if pair is None or pair.network.name != network or outgoing.epoch != epoch:
                continue
            sent = 0 if alarm else self._paths.sent(outgoing.pair, epoch)
            missing = [i for i in range(layout.FRAGMENTS) if not sent >> i & 1]
            if missing:
                self.beacons.send(pair, outgoing, missing)
