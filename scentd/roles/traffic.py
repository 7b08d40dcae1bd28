"""What the packet paths have counted, by the peer's configured name: its packets, its last one, its clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import NamedTuple

from scentd.control import packet_counts
from scentd.control.status import PeerTraffic
from scentd.core.pairs import Pairs, carrier_name
from scentd.datapath.offload.counts import PairCounts
from scentd.datapath.queue.link import WorkerReport
from scentd.prefix import PrefixMap

Outcomes = dict[str, Counter[str]]  # packets by peer and outcome


class SeenEpoch(NamedTuple):
    """An epoch that a peer's packet has named, and when it came: what tells of the peer's clock."""

    at: float  # Unix time
    epoch: int
    accepted: bool


class Traffic:
    """Since this daemon's start. A peer that a reload brings back goes on where it was."""

    def __init__(self) -> None:
        self._queued: PairCounts = Counter()  # of all workers
        self._peers: dict[int, str] = {}  # by pair: a pair's number is never given to another
        self._carriers: dict[str, list[str]] = {}
        self._accepted_at: dict[str, float] = {}
        self._seen: dict[str, SeenEpoch] = {}
        self._by_address: PrefixMap[int] = PrefixMap()  # any pair of the peer

    def configure(self, pairs: Pairs) -> None:
        self._peers |= {pair.number: pair.peer.name for pair in pairs.all}
        self._by_address = PrefixMap((a, p.number) for p in pairs.all if p.stamps for a in p.peer.addresses)
        self._carriers = {p.name: [carrier_name(p, version) for version in (4, 6)] for p in pairs.config.peer}

    def take_report(self, report: WorkerReport, now: float) -> None:
        self._queued.update({(pair, outcome): packets for pair, outcome, packets in report.of_pairs})
        self.accepted_from(report.nodes, now)
        self.take_refused({pair: (now, epoch) for pair, epoch in report.refused_epochs.items()})

    def take_outcome(self, address: str, outcome: str, packets: int) -> None:
        """More packets of the peer with this address."""
        pair = self._by_address.get(ip_address(address).packed)
        if pair is not None:
            self._queued[pair, outcome] += packets

    def take_refused(self, epochs: Mapping[int, tuple[float, int]]) -> None:
        """(when it came, the epoch) of the last packet of a peer that was refused for its epoch, by pair."""
        for pair, (at, epoch) in epochs.items():
            self._see(pair, SeenEpoch(at, epoch, False))

    def accepted_from(self, pairs: Iterable[int], now: float) -> None:
        """Packets of these pairs were accepted within the last second."""
        self._accepted_at |= {self._peers[pair]: now for pair in pairs if pair in self._peers}

    def take_epoch(self, pair: int, epoch: int, now: float) -> None:
        """A packet of this epoch has been accepted. Only the first one tells of the clock."""
        before = self._seen.get(self._peers.get(pair, ""))
        if before is None or not before.accepted or before.epoch < epoch:
            self._see(pair, SeenEpoch(now, epoch, True))

    def _see(self, pair: int, seen: SeenEpoch) -> None:
        peer = self._peers.get(pair)
        if peer is not None and (peer not in self._seen or self._seen[peer].at <= seen.at):
            self._seen[peer] = seen

    def outcomes(self, offloaded: PairCounts) -> Outcomes:
        """Packets of all paths by peer and outcome. `offloaded` are those that the programs have counted."""
        summed: Outcomes = {}
        for counts in (self._queued, offloaded):
            for (pair, outcome), packets in counts.items():
                peer = self._peers.get(pair)
                if peer is not None:
                    summed.setdefault(peer, Counter())[outcome] += packets
        return summed

    def status(self, peer: str, outcomes: Counter[str]) -> PeerTraffic:
        seen = self._seen.get(peer)
        return packet_counts.traffic(
            peer,
            outcomes,
            carriers=self._carriers.get(peer, []),
            accepted_at=self._accepted_at.get(peer),
            clock_offset=None if seen is None else round(seen.at - seen.epoch, 1),
            clock_refused=seen is not None and not seen.accepted,
        )
