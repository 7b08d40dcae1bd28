"""What a run of the programs costs by the number of peers, through BPF_PROG_TEST_RUN.

`hot`: all packets are of one peer among the N; `spread`: each is of another one, drawn at random, so that the
maps' entries have to come from memory. `stamp`; `verify` with packets that say nothing new, as most do; `assemble`
with packets that each bring a fragment: hot, one network whose profiles come one after the other, spread,
N networks whose profiles are all being put together.

One run for each call, because a run changes its packet. What an empty run takes is subtracted.
"""

from __future__ import annotations

import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

from benchmarks import dataplane_crowd
from benchmarks.dataplane_crowd import Crowd
from benchmarks.report import spread
from scentd.core.offload.coverage import Direction
from scentd.wire import layout

SIZES = (1, 1_000, 100_000, 1_000_000)
RUNS, RUNS_QUICK = 2000, 1000
MODES = ("hot", "spread")
Key = tuple[str, int, int]  # program, family, peers


def rows(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Nanoseconds by program, family and number of peers. Raises HostError."""
    runs = RUNS_QUICK if quick else RUNS
    found: dict[tuple[Key, str], list[float]] = {}
    chance = random.Random(1)  # noqa: S311 - which peers are drawn is no secret
    with ExitStack() as stack, pinned():
        crowds = []
        for size in SIZES[:-1] if quick else SIZES:
            print(f"bench: filling the maps for {size:,} peers", file=sys.stderr, flush=True)
            crowds.append(stack.enter_context(Crowd(size)))
        for n in range(1 if quick else 0, rounds + 1):
            print(
                f"bench: peers, round {n} of {rounds}" if n else "bench: peers, warming up", file=sys.stderr, flush=True
            )
            for program, work in PROGRAMS.items():
                for family in dataplane_crowd.FAMILIES:
                    for mode in MODES:
                        for one in crowds if n % 2 else crowds[::-1]:
                            peers = [0] * runs if mode == "hot" else chance.choices(range(one.peers), k=runs)
                            took = work(one, family, peers)
                            if n:
                                found.setdefault(((program, family, one.peers), mode), []).append(took)
    keys = dict.fromkeys(key for key, _ in found)
    return [row(key, {mode: found[key, mode] for mode in MODES}) for key in keys]


def row(key: Key, rounds: dict[str, list[float]]) -> dict[str, Any]:
    program, family, peers = key
    made = {"program": program, "family": family, "peers": peers}
    return made | {mode: spread(values) for mode, values in rounds.items()} | {"rounds": rounds}


def ratio(found: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The most peers over one, by rounds; the worst of programs and families. A quick run does not have the most."""
    names = {"hot": "peers_1m_over_1", "spread": "peers_1m_spread_over_1"}
    by = {(r["program"], r["family"], r["peers"]): r["rounds"] for r in found}
    made: dict[str, float | None] = {}
    for mode, name in names.items():
        each = [
            median(
                many / one
                for many, one in zip(by[what, family, SIZES[-1]][mode], by[what, family, 1]["hot"], strict=True)
            )
            for what, family, peers in by
            if peers == 1 and (what, family, SIZES[-1]) in by
        ]
        made[name] = round(max(each), 3) if each else None
    return made


def stamping(one: Crowd, family: int, peers: Sequence[int]) -> float:
    return net(one, "egress", one.stamp, [dataplane_crowd.frame(family, n) for n in peers])


def verifying(one: Crowd, family: int, peers: Sequence[int]) -> float:
    one.reset(set(peers), one.first, dataplane_crowd.ALL_SEEN)
    frames = [one.scented(family, n, one.first, i % layout.FRAGMENTS) for i, n in enumerate(peers)]
    return net(one, "ingress", one.verify, frames)


def assembling(one: Crowd, family: int, peers: Sequence[int]) -> float:
    """Every packet has the next fragment of its sender, whose epochs follow each other."""
    one.reset(set(peers), one.first + 1, 0)
    sent: Counter[int] = Counter()
    frames = []
    for n in peers:
        epoch, index = divmod(sent[n], layout.FRAGMENTS)
        frames.append(one.scented(family, n, one.first + 1 + epoch, index))
        sent[n] += 1
    return net(one, "ingress", one.verify, frames)


PROGRAMS: dict[str, Callable[[Crowd, int, Sequence[int]], float]] = {
    "stamp": stamping,
    "verify": verifying,
    "assemble": assembling,
}


def net(one: Crowd, direction: Direction, run: Callable[[bytes], int], frames: Sequence[bytes]) -> float:
    """Nanoseconds of a run, without what measuring costs."""
    empty = median(one.idle(direction) for _ in frames)
    return median(map(run, frames)) - empty


@contextmanager
def pinned() -> Iterator[None]:
    """On one processor meanwhile: another one's caches would be cold."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
