"""What a network costs its profiler in an interval, by part: processor time of each part alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.profiles import EPOCH, PER_PERIOD, per_call
from benchmarks.report import spread
from benchmarks.subject import Party
from scentd.config.sections import Network
from scentd.core.profile import issue, score
from scentd.core.profile.roll import Roll
from scentd.model import Sample, Samples

NODES = (1, 3, 100)
METRICS = ("cpu", "memory", "bandwidth_in", "bandwidth_out", "request_load")


def readings(nodes: int, at: float) -> list[Samples]:
    """One reading of each node, all of them different."""
    return [
        Samples(
            "near", f"c{n}", at, tuple(Sample(m, (n * 7 + k) % 10 / 10, at, f"n{n}") for k, m in enumerate(METRICS))
        )
        for n in range(nodes)
    ]


def steps(party: Party, nodes: int) -> dict[str, Callable[[int], Any]]:
    """By name, what is done in one interval, for each of an hour's epochs."""
    network = Network(name="near", key_file="-", interval=5.0)
    issuer = issue.Issuer(party.near, party.sends.issued_pairs("near"), issue.metric_slots({}))
    heard = {epoch: readings(nodes, epoch) for epoch in range(EPOCH, EPOCH + PER_PERIOD, PER_PERIOD // 60)}
    roll = Roll(network, EPOCH)
    samples = [sample for part in heard[EPOCH] for sample in part.samples]

    def ingest(epoch: int) -> None:
        at = EPOCH + (epoch - EPOCH) % 60 * (PER_PERIOD // 60)
        for part in heard[at]:
            roll.take(part, at)

    levels, active = score.measured(network, samples, (), EPOCH, False)
    assert len(levels.metrics) == len(METRICS), "a statement of nothing costs nothing"
    statement = score.stated(network, levels, active)
    issued = issuer.issue(statement, EPOCH)[0]
    return {
        "ingest": ingest,
        "aggregate": lambda _: score.measured(network, samples, (), EPOCH, False),
        "quantise": lambda _: score.stated(network, levels, active),
        "sign": lambda epoch: issuer.issue(statement, epoch),
        "check": lambda _: issuer.verify(issued),
    }


def rows(rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Microseconds of each part, for networks of so many nodes, one peer each."""
    with Party() as party:
        made = {nodes: steps(party, nodes) for nodes in NODES}
        return [
            {"part": part, "nodes": nodes, "us": spread([per_call(step, seconds) for _ in range(rounds)])}
            for nodes, parts in made.items()
            for part, step in parts.items()
        ]
