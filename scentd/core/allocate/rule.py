"""A policy, compiled: does it hold for a view, and what amount does it ask for? Pure.

The value of an expression depends on a few quantised numbers, so each rule remembers the outcomes of what it has seen,
up to CACHE_MAX of them: most networks cost a look-up and not an evaluation. `Rule.outcome` and `Rule.asked` use it;
`Rule.evaluate_view` does not, and says which values the expression saw.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from scentd.config import expression
from scentd.config.policy import Policy
from scentd.config.resource import Resource
from scentd.core.allocate.actions import action_of
from scentd.model import Profile, View
from scentd.wire import bloom, layout

STALE_INTERVALS = 3
STALE_MIN = 10.0
GLANCE_STEP = 1 / layout.GLANCE_MAX + 1e-9
CACHE_MAX = 20_000  # outcomes that a rule remembers
ITEM = re.compile(rf"""(?<![\w.]){expression.HAS_FUNCTION}\s*\(\s*(?:"([^"\\]*)"|'([^'\\]*)')\s*\)""")
CALL = re.compile(rf"\b{expression.HAS_FUNCTION}\s*\(")
UNSTEADY = {"age", "epoch"}  # variables whose values hardly ever come again

Values = dict[str, float | str]


class Verdict(NamedTuple):
    """What an expression gives on one profile."""

    outcome: str  # true, false, unknown, error
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How a policy stands for a view, with what its expression saw."""

    outcome: str  # true, or one of decide.OUTCOMES
    detail: str = ""
    values: dict[str, float | str | bool] | None = None
    reason: str = ""


class Facts:
    """The variables of the profiles of one view at one moment; computed once for all rules."""

    __slots__ = ("_values", "age", "now", "stale_at", "view")

    def __init__(self, view: View, now: float) -> None:
        self.view, self.now = view, now
        self.age = age(view, now)
        # Unix time at which the view is too old for policies that do not ask for its age.
        self.stale_at = view.received_at + max(STALE_INTERVALS * view.profile.interval, STALE_MIN)
        self._values: list[Values] = []

    def values(self, index: int) -> Values:
        """The variables on the profile `index`; 0 is the newest."""
        while len(self._values) <= index:
            self._values.append(variables(self.view, self.view.profiles[len(self._values)], self.now))
        return self._values[index]


class Expression:
    """One CEL expression and its remembered results. Raises ValueError if it is none."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.program = expression.compile(text)
        self.variables = tuple(self.program.references()["variables"])
        called = expression.compiled_text(text)
        found = [double or single for double, single in ITEM.findall(called)]
        self._items = tuple(dict.fromkeys(found))
        self._steady = len(found) == len(CALL.findall(called)) and not UNSTEADY & set(self.variables)
        self._results: dict[tuple[Any, ...], Any] = {}

    def remembered(self, values: Values, profile: Profile, evaluate: Callable[[], Any]) -> Any:
        """The result of `evaluate()` for these values; from memory if they have been seen."""
        if not self._steady:
            return evaluate()
        seen = tuple(map(values.get, self.variables))
        if self._items:
            seen += tuple([bloom.contains(profile.bloom, profile.epoch, item) for item in self._items])
        try:
            return self._results[seen]
        except KeyError:
            pass
        if len(self._results) >= CACHE_MAX:
            self._results.clear()
        result = self._results[seen] = evaluate()
        return result

    def execute(self, values: Mapping[str, Any], has: Callable[[str], bool]) -> Any:
        """Raises ValueError, TypeError, RuntimeError or ArithmeticError."""
        return self.program.execute({**expression.AMOUNT_FUNCTIONS, **values, expression.HAS_FUNCTION: has})

    def missing(self, values: Values) -> list[str]:
        return [name for name in self.variables if name not in values]


class Rule:
    """A policy, compiled. Raises ValueError if its expression is not CEL."""

    def __init__(self, policy: Policy, resources: Mapping[str, Resource]) -> None:
        self.policy = policy
        self.action = action_of(policy.do)
        self.when = Expression(policy.when)
        self.request = self.action.request(policy.do, resources)
        self._amount = Expression(self.request.expression) if self.request and self.request.expression else None
        self.uses_age = "age" in self.when.variables
        # Done by each of several allocators for itself, as quarantine is; amounts, commands and webhooks are for one.
        self.only_here = self.request is None and self.action.level_triggered

    @property
    def counts_on_current(self) -> bool:
        """Whether the amount that it asks for depends on what there is."""
        if self.request is None:
            return False
        return self.request.relative or (self._amount is not None and "current" in self._amount.variables)

    @property
    def peer(self) -> str:
        """Whom it is about: a peer's name, or *. A policy for all asks for a resource of one peer for that one."""
        if self.policy.peer == "*" and self.request is not None:
            return self.request.resource.peer
        return self.policy.peer

    def stale_at(self, facts: Facts) -> float:
        """Unix time at which the view is too old for this policy."""
        return math.inf if self.uses_age else facts.stale_at

    def outcome(self, facts: Facts, bounds: Mapping[str, float]) -> Verdict:
        """Whether the policy holds: its expression is true on `matches` of the last `profiles` profiles.

        `bounds`: the variables of the resource that the policy asks for: current, minimum, maximum.
        """

        def verdict_on(index: int) -> Verdict:
            values, profile = facts.values(index), facts.view.profiles[index]
            if bounds:
                values = {**values, **bounds}
            verdict: Verdict = self.when.remembered(values, profile, lambda: self._verdict(values, profile, {}))
            return verdict

        if facts.now > facts.stale_at and not self.uses_age:
            return Verdict("stale", f"last profile {facts.age:.0f} s ago")
        if self.policy.profiles == 1:
            return verdict_on(0)
        outcome, detail, *_ = self._over_profiles(len(facts.view.profiles), verdict_on)
        return Verdict(outcome, detail)

    def evaluate_view(self, facts: Facts, bounds: Mapping[str, float]) -> Evaluation:
        """As `outcome`, with the values that the expression saw; remembers nothing."""
        seen: dict[int, dict[str, float | str | bool]] = {}

        def verdict_on(index: int) -> Verdict:
            seen[index] = {}
            return self._verdict({**facts.values(index), **bounds}, facts.view.profiles[index], seen[index])

        policy = self.policy
        if facts.now > facts.stale_at and not self.uses_age:
            return Evaluation("stale", f"last profile {facts.age:.0f} s ago", {}, policy.when)
        outcome, detail, chosen, true_count, count = self._over_profiles(len(facts.view.profiles), verdict_on)
        reason = f"{policy.when} [{format_values(seen[chosen])}]"
        if policy.profiles > 1:
            reason += f", in {true_count} of the last {count} profiles"
        return Evaluation(outcome, detail, seen[chosen], reason)

    def asked(self, facts: Facts, bounds: Mapping[str, float]) -> float | None:
        """The amount that the policy asks for now, within the resource's bounds. None: its expression cannot tell (a
        value that is not stated, a division by zero, no finite number).
        """
        assert self.request is not None  # only rules that ask for amounts are asked
        number: float | None = self.request.number
        if self._amount is not None:
            values, profile = {**facts.values(0), **bounds}, facts.view.profile
            number = self._amount.remembered(values, profile, lambda: self._number(values, profile))
        elif self.request.relative:
            number = self.request.number + bounds["current"]
        return None if number is None else min(max(number, bounds["minimum"]), bounds["maximum"])

    def amount_reason(self, facts: Facts, bounds: Mapping[str, float]) -> str:
        """What the amount was computed of, for people; empty if it is a number."""
        if self._amount is None:
            return ""
        values = {**facts.values(0), **bounds}
        seen = {name: values[name] for name in self._amount.variables if name in values}
        return f"; {self._amount.text} [{format_values(seen)}]"

    def _number(self, values: Values, profile: Profile) -> float | None:
        assert self._amount is not None  # asked() has looked
        try:
            result = self._amount.execute(values, lambda item: bloom.contains(profile.bloom, profile.epoch, item))
        except (ValueError, TypeError, RuntimeError, ArithmeticError):
            return None
        is_number = isinstance(result, int | float) and not isinstance(result, bool)
        return float(result) if is_number and math.isfinite(result) else None

    def _over_profiles(self, known: int, verdict_on: Callable[[int], Verdict]) -> tuple[str, str, int, int, int]:
        """(outcome, detail, the profile that decided, on how many it is true, of how many)."""
        policy, count = self.policy, min(known, self.policy.profiles)
        first, best, true_count = Verdict("false"), None, 0
        for i in range(count):
            verdict = verdict_on(i)
            first = verdict if i == 0 else first
            if verdict.outcome == "true":
                true_count += 1
                best = i if best is None else best
            if true_count == policy.matches or true_count + count - i - 1 < policy.matches:
                break
        chosen = best or 0
        if true_count == policy.matches:
            return "true", "", chosen, true_count, count
        if count < policy.matches:
            return "too-few-profiles", f"{count} of {policy.matches}", chosen, true_count, count
        outcome = "false" if first.outcome == "true" else first.outcome
        return outcome, first.detail, chosen, true_count, count

    def _verdict(self, values: Values, profile: Profile, seen: dict[str, float | str | bool]) -> Verdict:
        """Evaluate on one profile; `seen` takes the values that the expression has looked at."""
        seen.update({name: values[name] for name in self.when.variables if name in values})

        def has(item: str) -> bool:
            contained = bloom.contains(profile.bloom, profile.epoch, item)
            seen[f'has("{item}")'] = contained
            return contained

        try:
            result = self.when.execute(values, has)
        except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
            missing = self.when.missing(values)
            if missing:
                return Verdict("unknown", f"unknown: {', '.join(missing)}")
            return Verdict("error", str(error).split("\n")[0][:200])
        return Verdict("true" if result is True else "false")


def age(view: View, now: float) -> float:
    return max(0.0, now - view.received_at)


def variables(view: View, profile: Profile, now: float) -> Values:
    """The variables of an expression on this profile. A value that the profile does not state has no variable."""
    newest = view.profile
    values: Values = {
        **profile.levels,
        "threat": profile.threat,
        "age": age(view, now) + (newest.epoch - profile.epoch),
        "interval": float(profile.interval),
        "epoch": float(profile.epoch),
        "peer": view.peer,
    }
    if profile.overall is not None:
        values["overall"] = profile.overall
    if profile is newest:
        values["load"] = view.glance_load
        if view.glance_threat > profile.threat + GLANCE_STEP:
            values["threat"] = view.glance_threat
    elif profile.overall is not None:
        values["load"] = profile.overall
    return values


def format_values(values: Mapping[str, float | str | bool]) -> str:
    def text(value: float | str | bool) -> str:
        return str(value).lower() if isinstance(value, bool) else value if isinstance(value, str) else f"{value:.10g}"

    return ", ".join(f"{name}={text(value)}" for name, value in values.items())
