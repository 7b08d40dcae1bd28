"""What deciding costs: 100,000 networks, 10 policies, a new profile of each every 10 seconds.

Three policies ask for amounts by what there is (`current`), two ask the Bloom filter (`has`). Levels come from a trace
of real machines (--traces DIR: multi/smd_machine-*.csv.gz), each network at a place of its own; without one from random
walks. Time is processor time of the pure core: policies, amounts, desired state.
"""

from __future__ import annotations

import csv
import gzip
import random
import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import columns, spread
from scentd.config.budget import Budget
from scentd.config.policy import Policy
from scentd.config.resource import Resource
from scentd.core.allocate.actions.amount import AmountAction
from scentd.core.allocate.actions.command import CommandAction
from scentd.core.allocate.actions.quarantine import QuarantineAction
from scentd.core.allocate.amounts import Amounts
from scentd.core.allocate.decide import Decider
from scentd.core.allocate.plan import plan
from scentd.model import Desired, Profile, View
from scentd.wire import bloom

ROUNDS = 5
NETWORKS = 100_000
INTERVAL = 10
EPOCH = 1_800_000_000
STEPS = 50
METRICS = ("cpu", "memory", "bandwidth_in", "bandwidth_out", "latency", "jitter", "database_load", "request_load")
COLUMNS = (4, 5, 18, 19, 22, 23, 24, 6)  # of the trace, for these metrics: those that move
GOALS = {"cores": 0.5, "gigabytes": 1.5}
COMMAND = CommandAction(argv=["/bin/true"])
RESOURCES = [
    Resource(name="replicas", minimum=1.0, maximum=8.0, provide=30.0),
    Resource(name="workers", minimum=1.0, maximum=20.0, step=2.0),
    Resource(name="rate", minimum=1e6, maximum=1e9),
]
POLICIES = [
    Policy("replicas-up", "cpu > 0.77 || cpu < 0.6", AmountAction(resource="replicas", to="ceil(current * cpu / 0.7)")),
    Policy(
        "workers",
        "request_load > 0.9 || request_load < 0.4",
        AmountAction(resource="workers", to="max(1.0, ceil(current * request_load / 0.6))"),
        hold=20.0,
    ),
    Policy("widen", "bandwidth_out > 0.8 && current < maximum", AmountAction(resource="rate", by=1e7), cooldown=60.0),
    Policy("role", 'has("role=db;metric=cpu;level=high") && cpu > 0.5', COMMAND),
    Policy("region", 'has("region=eu-west;metric=latency;level=high")', COMMAND, matches=2, profiles=3),
    Policy("quarantine", "threat >= 0.5", QuarantineAction()),
    Policy("watch", "threat > 0.2 && latency > 0.5", COMMAND, cooldown=300.0),
    Policy("memory", "memory > 0.9", COMMAND, hold=30.0),
    Policy("database", "database_load > 0.8 && memory > 0.5", COMMAND, cooldown=60.0),
    Policy("quiet", "load < 0.1 && overall < 0.1", COMMAND, hold=600.0),
]


def run(rounds: int, quick: bool, traces: str = "") -> dict[str, Any]:
    networks = NETWORKS // 50 if quick else NETWORKS
    names = [f"n{i}" for i in range(networks)]
    rows = levels(traces)
    amounts = Amounts(RESOURCES, [Budget(name="east", resources=["replicas"], total=networks * 3.0)], names)
    for section in RESOURCES:
        amounts.observe(section.name, dict.fromkeys(names, section.usual), (), EPOCH)
    decider, desired = Decider(POLICIES, amounts), Desired()
    chance = random.Random(1)  # noqa: S311 (places in a trace)
    places = [chance.randrange(len(rows)) for _ in range(networks)]
    used, fired, moved = [], 0, 0
    for n in range(rounds + 1):
        now = EPOCH + INTERVAL * n
        views = [view(name, rows[(places[i] + n) % len(rows)], now) for i, name in enumerate(names)]
        began = time.process_time()
        firings = []
        for begin in range(0, networks, 100):  # as they come in, 100 at a time
            new = [f for seen in views[begin : begin + 100] for f in decider.decide(seen, now)]
            desired = plan(desired, new).desired
            firings += new
            amounts.settle(now, share_all=False)
            if begin % (networks // INTERVAL) == 0:  # the tick of a second
                amounts.settle(now)
        decider.due(now)
        changes = amounts.take_changes()
        seconds = time.process_time() - began
        for name in changes:  # what was wanted is there when the next profiles come
            found = {peer: e.desired for (r, peer), e in amounts.entries() if r == name}
            amounts.observe(name, found, (), now)
        if n:  # the first round fills the memory of what was seen
            used.append(seconds)
            fired, moved = fired + len(firings), moved + sum(map(len, changes.values()))
    return {
        "benchmark": "allocator",
        "quick": quick,
        "rounds": rounds,
        "networks": networks,
        "policies": len(POLICIES),
        "levels": traces or "random walks",
        "us_per_network": spread([1e6 * s / networks for s in used]),
        "cores": spread([s / INTERVAL * NETWORKS / networks for s in used]),
        "fired_share": fired / rounds / networks,
        "moved_share": moved / rounds / networks,
        "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "goals": GOALS,
    }


def view(name: str, row: Sequence[float], now: float) -> View:
    epoch = int(now)
    given = dict(zip(METRICS, row, strict=False))
    given["threat"] = 0.0
    items = ["role=db;metric=cpu;level=high"] if given["cpu"] > 0.8 else ["role=web"]
    profile = Profile(name, epoch, INTERVAL, given["cpu"], given, bloom.make(items, epoch))
    return View(name, (profile,), now, round(given["cpu"] * 15) / 15, 0.0, epoch)


def levels(traces: str) -> list[tuple[float, ...]]:
    """Rows of levels in steps, one after the other in time."""
    paths = sorted(Path(traces).glob("multi/smd_machine-*.csv.gz")) if traces else []
    rows = [row for path in paths for row in machine(path)]
    return rows or list(walk(40_000))


def machine(path: Path) -> Iterator[tuple[float, ...]]:
    with gzip.open(path, "rt") as file:
        for row in list(csv.reader(file))[1:]:
            yield tuple(round(int(row[2 + c]) / 1e4 * STEPS) / STEPS for c in COLUMNS)


def walk(length: int) -> Iterator[tuple[float, ...]]:
    chance = random.Random(1)  # noqa: S311 (a walk)
    at = [chance.random() for _ in METRICS]
    for _ in range(length):
        at = [min(max(x + chance.gauss(0, 0.05), 0.0), 1.0) for x in at]
        yield tuple(round(x * STEPS) / STEPS for x in at)


def table(result: dict[str, Any]) -> str:
    rows = [["", "median", "most", "goal"]]
    for name in ("us_per_network", "cores"):
        found = result[name]
        rows.append([name, str(found["median"]), str(found["max"]), str(GOALS.get(name, ""))])
    rows.append(["gigabytes", f"{result['gigabytes']:.2f}", "", str(GOALS["gigabytes"])])
    return columns(rows)
