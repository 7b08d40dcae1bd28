"""One resource of one peer: what policies wish of it, what it should be, what it is. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from scentd.config.policy import Purpose
from scentd.config.resource import Resource

TURNS_MAX = 4
TURN_SECONDS = 600.0
PAUSE = 600.0  # seconds in which what oscillates is only raised
TOLERANCE = 1e-6  # relative; amounts that are closer are one

Key = tuple[str, str]  # resource, peer


class Wish(NamedTuple):
    """What one policy wants of one resource for one peer."""

    amount: float
    purpose: Purpose | None
    until: float  # Unix time; infinite: while the policy holds
    epoch: int
    reason: str


class Turn(NamedTuple):
    """The amount went up or down, after it had gone the other way."""

    at: float
    policy: str
    up: bool


@dataclass(slots=True)
class AmountEntry:
    """One resource of one peer."""

    desired: float | None = None  # None: not observed yet
    observed: float | None = None
    observed_since: float = -math.inf
    grown_at: float = -math.inf
    shrunk_at: float = -math.inf
    wishes: dict[str, Wish] = field(default_factory=dict)  # by policy
    due: float = math.inf  # when it must be settled again without a cause from outside
    timed: bool = False  # the amount is there because of a wish with a timeout
    silent: bool = False  # the fallback was applied
    turns: tuple[Turn, ...] = ()
    paused_until: float = -math.inf
    changed_by: str = ""  # the policy of the last change of `desired`, and when that was
    changed_at: float = -math.inf


def take_observed(entry: AmountEntry, amount: float, now: float) -> bool:
    """Whether it is another amount than before."""
    if entry.observed == amount:
        return False
    if entry.observed is not None:
        entry.observed_since = now
    entry.observed = amount
    return True


def is_settling(entry: AmountEntry, section: Resource, measured_at: float, now: float) -> bool:
    """Whether levels whose measuring began at `measured_at` are of another amount than the one that is observed: a
    change is under way, or they are of before it. An expression would count the change twice, or not at all.
    """
    if measured_at < entry.observed_since:
        return True
    under_way = entry.desired is not None and entry.observed is not None and not same(entry.desired, entry.observed)
    return under_way and now < entry.changed_at + max(section.provide, section.take_back)


def oscillating(entry: AmountEntry, policy: str, up: bool, now: float) -> list[str]:
    """Note a change's direction; the policies' names if it is an oscillation, which stops taking back for PAUSE."""
    if entry.turns and entry.turns[-1].up == up:
        return []
    entry.turns = (*(t for t in entry.turns if now - t.at < TURN_SECONDS), Turn(now, policy, up))
    if len(entry.turns) <= TURNS_MAX:
        return []
    names = sorted({t.policy for t in entry.turns if t.policy})
    entry.turns, entry.paused_until = (), now + PAUSE
    return names


def winner(section: Resource, wishes: Mapping[str, Wish]) -> tuple[str, Wish | None]:
    """The policy whose wish counts, and the wish."""
    if not wishes:
        return "", None
    safe = {policy: wish for policy, wish in wishes.items() if wish.purpose == "safety"}
    strictest = min if section.stricter == "less" else max
    choose = strictest if safe else max
    return choose((safe or dict(wishes)).items(), key=lambda item: item[1].amount)


def bounded(section: Resource, want: float) -> float:
    """The amount within the resource's bounds; whole, if it must be: rounded up."""
    want = float(math.ceil(want - TOLERANCE)) if section.whole else want
    return min(max(want, section.minimum), section.maximum)


def one_step(want: float, desired: float, current: float, step: float) -> float:
    """So far from `desired` to `want` as `step` allows from what there is. It never turns the other way."""
    if want > desired:
        return max(desired, min(want, current + step))
    return min(desired, max(want, current - step))


def same(a: float, b: float) -> bool:
    return abs(a - b) <= TOLERANCE * max(1.0, abs(a), abs(b))
