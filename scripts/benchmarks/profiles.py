"""Profiles a second on one core: issuing (score, Bloom, sign, seal) and verifying (open, check, decode).

One network with one peer and ten samples of three nodes an interval; a new epoch for every profile.
Rates are whole profiles by CPU time; the steps are measured each alone and say where it goes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from benchmarks.report import columns, spread
from benchmarks.subject import Party
from scentd.config.sections import Network
from scentd.core.allocate.view import PeerView
from scentd.core.pairs import Pair
from scentd.core.profile import issue, score
from scentd.model import Sample
from scentd.wire import bloom, profile

ROUNDS = 9
GOALS = {"issue": 10_000, "verify": 5_000}  # a second
EPOCH = 1_800_000_000  # within one period of keys for an hour
PER_PERIOD = 3600
READINGS = (
    ("cpu", 0.42, "db"),
    ("cpu", 0.61, "web"),
    ("cpu", 0.35, "cache"),
    ("memory", 0.7, "db"),
    ("memory", 0.5, "web"),
    ("memory", 0.81, "cache"),
    ("bandwidth_in", 0.2, ""),
    ("bandwidth_out", 0.25, ""),
    ("latency", 0.1, ""),
    ("jitter", 0.05, ""),
)


def run(rounds: int, quick: bool) -> dict[str, Any]:
    seconds = 0.02 if quick else 0.3
    rows = []
    with Party() as party:
        for direction, steps in (("issue", issuing(party)), ("verify", verifying(party))):
            for name, step in steps.items():
                used = [per_call(step, seconds) for _ in range(rounds)]
                rows.append({"what": direction, "step": name, "us": spread(used)})
    rates = {r["what"]: round(1e6 / r["us"]["median"]) for r in rows if r["step"] == "whole"}
    return {
        "benchmark": "profiles",
        "quick": quick,
        "rounds": rounds,
        "rows": rows,
        "per_second": rates,
        "goals": GOALS,
    }


def samples(now: float) -> list[Sample]:
    return [Sample(metric, value, now, f"10.0.0.{n % 3}", role) for n, (metric, value, role) in enumerate(READINGS)]


def issuing(party: Party) -> dict[str, Callable[[int], Any]]:
    """By name, what is done for one epoch."""
    issued = party.sends.issued_pairs("near")
    issuer = issue.Issuer(party.near, issued, issue.metric_slots({}))
    network = Network(name="near", key_file="-", labels=["region=eu-west"], interval=10.0)
    readings = {epoch: samples(epoch) for epoch in range(EPOCH, EPOCH + PER_PERIOD)}  # fresh in every epoch
    statement = score.statement(network, readings[EPOCH], [], EPOCH)
    assert statement.levels, "a statement of nothing costs nothing"
    slots = issue.metric_slots({})
    levels = {slots[m]: v for m, v in statement.levels.items()}
    key_id, pair_keys = party.near.public.key_id, issued[0].keys_at(EPOCH)
    body = profile.encode_body(key_id, EPOCH, 10, statement.overall, levels, bloom.make(statement.items, EPOCH))
    signed = profile.sign(party.near.signer, body)
    return {
        "whole": lambda epoch: issuer.issue(score.statement(network, readings[epoch], [], epoch), epoch),
        "score": lambda epoch: score.statement(network, readings[epoch], [], epoch),
        "bloom": lambda epoch: bloom.make(statement.items, epoch),
        "encode": lambda epoch: profile.encode_body(key_id, epoch, 10, statement.overall, levels, b""),
        "sign": lambda _: profile.sign(party.near.signer, body),
        "seal": lambda epoch: profile.fragments(profile.seal(pair_keys, signed)),
        # What the daemon does besides: it opens its own profile once before it is sent.
        "whole, and checked": lambda epoch: issuer.verify(
            issuer.issue(score.statement(network, readings[epoch], [], epoch), epoch)[0]
        ),
    }


def verifying(party: Party) -> dict[str, Callable[[int], Any]]:
    """By name, what is done with the ten fragments of one profile."""
    pair: Pair = party.takes.all[0]
    network = Network(name="near", key_file="-", interval=10.0)
    statement = score.statement(network, samples(EPOCH), [], EPOCH)
    issuer = issue.Issuer(party.near, party.sends.issued_pairs("near"), issue.metric_slots({}))
    sealed = b"".join(issuer.issue(statement, EPOCH)[0].fragments)
    (secret,) = pair.secrets
    pair_keys = secret.receive_keys(EPOCH // PER_PERIOD)
    verifier, key_id = secret.public.verifier(), secret.public.key_id
    opened = profile.unseal(pair_keys, sealed)
    body, signature = opened[:66], opened[66:]
    decoded = profile.decode_body(body, key_id, EPOCH)
    assert isinstance(decoded, profile.Body)
    newer = {epoch: replace(decoded, epoch=epoch) for epoch in range(EPOCH, EPOCH + PER_PERIOD)}
    views: dict[int, PeerView] = {}

    def take(epoch: int) -> Any:
        """A view takes only what is newer than what it has: each hour of epochs has one of its own."""
        if epoch == EPOCH or not views:
            views[0] = PeerView("near", (), pair.slots())
        return views[0].take_profile(newer[epoch], secret.pseudonym_key, EPOCH)

    def whole(epoch: int) -> Any:
        made = profile.open_sealed(sealed, pair_keys, verifier, key_id, EPOCH)
        assert isinstance(made, profile.Body)
        return take(epoch)

    return {
        "whole": whole,
        "unseal": lambda _: profile.unseal(pair_keys, sealed),
        "check": lambda _: verifier.verify(signature, profile.LABEL_SIGNATURE + body),
        "decode": lambda _: profile.decode_body(body, key_id, EPOCH),
        "view": take,
    }


def epochs() -> Iterator[int]:
    """Ever new seconds of one period: a pair's keys are derived once an hour, and that is not what is measured."""
    while True:
        yield from range(EPOCH, EPOCH + PER_PERIOD)


def per_call(step: Callable[[int], Any], seconds: float) -> float:
    """CPU microseconds of one call."""
    begin, calls = time.process_time(), 0
    for epoch in epochs():
        step(epoch)
        calls += 1
        if calls % 16 == 0 and time.process_time() >= begin + seconds:
            break
    return (time.process_time() - begin) / calls * 1e6


def table(result: dict[str, Any]) -> str:
    """For people."""
    lines = [("", "us", "min", "max")]
    for r in result["rows"]:
        lines.append((f"{r['what']}: {r['step']}", *(f"{r['us'][k]:.1f}" for k in ("median", "min", "max"))))
    text = columns(lines)
    for what, rate in result["per_second"].items():
        text += f"\n{what}: {rate} profiles/s on one core (goal {GOALS[what]})"
    return text
