"""What the programs have counted since this daemon's start: all packets by outcome, and each pair's.

The pinned maps go on from an earlier daemon, and larger maps begin anew: both are taken off or added here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from scentd.core.offload import decode
from scentd.core.offload.decode import PacketTally
from scentd.core.offload.encode import PAIR
from scentd.datapath.offload.bpfmap import F_LOCK
from scentd.datapath.offload.programs import Programs

PairCounts = Counter[tuple[int, str]]  # packets by pair and outcome, by the names of a worker's report


class Counts:
    """Of the programs that `begin` was given last."""

    def __init__(self) -> None:
        self._programs: Programs | None = None
        self._earlier: Counter[str] = Counter()
        self._earlier_of_pairs: PairCounts = Counter()

    def begin(self, loaded: Programs) -> None:
        """Count on with these programs; their maps may have counted before. Raises BpfError."""
        self._earlier, self._earlier_of_pairs = self.totals(), self.of_pairs()
        self._earlier.subtract(totals(loaded))
        self._earlier_of_pairs.subtract(of_pairs(loaded))
        self._programs = loaded

    def keep(self, pairs: Iterable[int]) -> None:
        """The entries of these pairs in `receiving` are about to be deleted."""
        if self._programs is not None:
            receiving = self._programs.maps["verify.receiving"]
            for pair in pairs:
                if value := receiving.lookup(PAIR.pack(pair), F_LOCK):
                    self._earlier_of_pairs[pair, "accepted"] += decode.parse_receiving(value).accepted

    def totals(self) -> Counter[str]:
        """Packets by outcome."""
        counted = Counter(self._earlier)
        if self._programs is not None:
            counted.update(totals(self._programs))
        return +counted

    def of_pairs(self) -> PairCounts:
        """Packets by pair and outcome. Only accepted ones are told by pair: the others are by any pair of the peer."""
        counted = Counter(self._earlier_of_pairs)
        if self._programs is not None:
            counted.update(of_pairs(self._programs))
        return +counted

    def refused(self) -> tuple[PairCounts, dict[int, tuple[int, int]]]:
        """The rarer half of them, that were not accepted, or not stamped; and (the Unix second, the epoch) of the last
        packet that was refused for its epoch, by any pair of its peer.
        """
        counted = Counter({key: count for key, count in self._earlier_of_pairs.items() if key[1] != "accepted"})
        newest: dict[int, tuple[int, int]] = {}
        for tally in tallies(self._programs) if self._programs is not None else ():
            counted[tally.pair, tally.name] += tally.packets
            if tally.epoch:
                newest[tally.pair] = max(newest.get(tally.pair, (0, 0)), (tally.at, tally.epoch))
        return +counted, newest


def totals(loaded: Programs) -> Counter[str]:
    summed: Counter[str] = Counter()
    for program, names in decode.COUNTERS.items():
        for key, value in loaded.maps[f"{program}.counters"].items():
            summed[names[PAIR.unpack(key)[0]]] += packets(value)
    return summed


def packets(value: bytes) -> int:
    """The sum of the numbers of each processor."""
    return sum(memoryview(value).cast("Q"))


def refused(loaded: Programs) -> PairCounts:
    summed: PairCounts = Counter()
    for tally in tallies(loaded):
        summed[tally.pair, tally.name] += tally.packets
    return summed


def of_pairs(loaded: Programs) -> PairCounts:
    summed = refused(loaded)
    for key, value in loaded.maps["verify.receiving"].items(F_LOCK):
        if count := decode.parse_receiving(value).accepted:
            summed[PAIR.unpack(key)[0], "accepted"] += count
    for key, value in loaded.maps["verify.accepted"].items():
        if any(value):
            summed[PAIR.unpack(key)[0], "accepted"] += packets(value)
    return summed


def tallies(loaded: Programs) -> Iterator[PacketTally]:
    for program in decode.COUNTERS:
        counted = loaded.maps[f"{program}.tallies"]
        yield from (decode.parse_tally(program, key, counted.parts(value)) for key, value in counted.items())
