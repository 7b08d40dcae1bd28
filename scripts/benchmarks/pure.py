"""Stamper and verifier alone, without kernel or queue: what Python itself costs a packet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.packets import SIZES, bare
from benchmarks.report import spread
from benchmarks.subject import Party


def rows(party: Party, rounds: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Microseconds a packet of `stamp` and `verify`, both families, small and full."""
    for family in (4, 6):
        for size in SIZES:
            packets = bare(family, size)
            stamper, verifier = party.stamper(), party.verifier()
            scented = [p for p in map(stamper.stamp, packets * 32) if isinstance(p, bytes)]
            for what, work, load in (("stamp", stamper.stamp, packets), ("verify", verifier.verify, scented[-256:])):
                used = [per_call(work, load, seconds) for _ in range(rounds)]
                yield {"what": what, "family": family, "size": size, "us": spread(used)}


def per_call(work: Callable[[bytes], Any], packets: Sequence[bytes], seconds: float) -> float:
    """CPU microseconds of one call, over whole passes through the packets."""
    begin, calls = time.process_time(), 0
    while time.process_time() < begin + seconds:
        for packet in packets:
            work(packet)
        calls += len(packets)
    return (time.process_time() - begin) / calls * 1e6
