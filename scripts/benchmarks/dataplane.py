"""What the offload costs on the wire, against no program, the queue, SRv6 with HMAC and wireguard-go.

Two namespaces and a veth pair for each kind stand side by side, so that all kinds take turns: in each
round every load of each family goes over every kind, another one first each time. Loads: one TCP stream
(iperf3, cubic), small UDP packets at the rate that both ends carry, round trips of one byte over TCP.

`floor` is what is left if the programs do nothing but make room, write and take off: no other can be nearer to `none`.

`ratio` holds medians of the ratios of turns of the same round, which the noise of a machine touches both;
`..._tcp` without a family is the lower of the two. `programs`: nanoseconds a run and instructions of the
programs that ran. `peers`: the same programs, fed through BPF_PROG_TEST_RUN, with up to a million peers.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import dataplane_maps, dataplane_programs
from benchmarks.dataplane_daemons import Offload, Queue
from benchmarks.dataplane_floor import Floor
from benchmarks.dataplane_kinds import Accept, Kind, SegmentRouting, WireGuard
from benchmarks.dataplane_load import IPERF, LOADS, Length, look
from benchmarks.dataplane_report import AT_MOST, GOALS, Turns, ratios, row, table
from benchmarks.lab import LabError, busy

__all__ = ["KINDS", "ROUNDS", "run", "table"]

ROUNDS = 9
KINDS: dict[str, type[Kind]] = {k.name: k for k in (Kind, Floor, Offload, Queue, Accept, SegmentRouting, WireGuard)}
QUICK = Length(tcp=1, udp=0.3, trips=500)
FULL = Length(tcp=2, udp=1.0, trips=4000)
QUIET = 0.05
WARM_UP = Length(tcp=1, udp=0.1, trips=100)


def run(rounds: int, quick: bool, names: Sequence[str] = tuple(KINDS)) -> dict[str, Any]:
    """All rows and ratios. Raises LabError; KeyboardInterrupt leaves nothing behind."""
    if shutil.which(IPERF) is None:
        raise LabError(f"{IPERF}: not found; apt-get install {IPERF}")
    length = QUICK if quick else FULL
    left_out = {name: why for name in names if (why := KINDS[name].missing())}
    for name, why in left_out.items():
        say(f"{name} is left out: {why}")
    with tempfile.TemporaryDirectory(prefix="scentd-bench-") as folder, ExitStack() as stack:
        kinds = []
        for name in names:
            if name not in left_out:
                say(f"setting up {name}")
                kinds.append(stack.enter_context(KINDS[name](Path(folder, name))))
        for kind in kinds:
            for family in kind.families:
                look(kind, family)
        others = busy_share()
        if others > QUIET:
            say(f"other programs keep the processors {others:.0%} busy: differences of a few percent mean nothing now")
        turns = measure(kinds, rounds, length, warm_up=not quick)
        for kind in kinds:
            kind.check()
        programs = [row for kind in kinds if isinstance(kind, Offload) for row in dataplane_programs.rows(kind, length)]
    if "ebpf" in names and not programs:
        left_out["programs"] = "scentd attached them without tcx links (Linux 6.6), and only those are found here"
    peers = dataplane_maps.rows(rounds, quick) if "ebpf" in names else []
    return {
        "benchmark": "dataplane",
        "quick": quick,
        "rounds": rounds,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": os.uname().release,
        "busy_before": round(others, 3),
        "left_out": left_out,
        "rows": [row((load, kind, f), turns[load, kind, f]) for load in LOADS for kind, f in order(turns)],
        "programs": programs,
        "peers": peers,
        "ratio": ratios(turns) | dataplane_programs.worst(programs) | dataplane_maps.ratio(peers),
        "goals": GOALS,
        "goals_at_most": list(AT_MOST),
    }


def busy_share() -> float:
    """How busy the machine is with everything set up and nothing measured: 1.0 is all processors."""
    before, start = busy(), time.monotonic()
    time.sleep(1)
    return (busy() - before) / (time.monotonic() - start) / len(os.sched_getaffinity(0))


def order(turns: Turns) -> list[tuple[str, int]]:
    """Kinds and families, as they are told."""
    there = {(kind, family) for _, kind, family in turns}
    return [(kind, family) for kind in KINDS for family in (4, 6) if (kind, family) in there]


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def measure(kinds: Sequence[Kind], rounds: int, length: Length, warm_up: bool) -> Turns:
    """Every load over every kind and family, in turns. The round before the first warms up."""
    turns: Turns = {}
    for n in range(0 if warm_up else 1, rounds + 1):
        say(f"round {n} of {rounds}" if n else "warming up")
        shift = n % len(kinds)
        turn = [*kinds[shift:], *kinds[:shift]][:: -1 if n % 2 else 1]
        for load, work in LOADS.items():
            for family in (4, 6):
                for kind in turn:
                    if family in kind.families:
                        made = work(kind, family, length if n else WARM_UP)
                        if n:
                            turns.setdefault((load, kind.name, family), []).append(made)
    return turns
