"""Views and policies in, firings out. Pure: time is an argument, nothing is read or written.

A policy's `when` is CEL (Common Expression Language) over one profile. Its variables are
doubles, except `peer` (text):

    every metric    the profile's level; `threat` is 0.0 without a reading
    overall         the profile's overall score
    load            the glance's load level; for an older profile its overall score
    age             seconds since the profile came in (older ones: plus the epochs between)
    interval epoch  as the profile states them

and `has("role=db;metric=cpu;level=high")` asks the profile's Bloom filter.

Rules that are not in the expression:

* A policy does not hold ("unknown") if the profile does not state a value of its expression, unless the
  rest of the expression decides alone: `cpu > 0.8 || has("x")`.
* The glance is tagged, not signed, and coarse (1/15). If its threat is more than one step above that of
  the newest profile, it raises `threat`: this is an alarm whose profile is still on its way. It never lowers
  `threat`: only the next signed profile is the all-clear. `age`, `matches` and `profiles` go by profiles alone.
* Three intervals (at least STALE_MIN seconds) after a peer's last profile its view is stale: no policy holds,
  unless the expression uses `age`. Without this rule a quarantine would renew itself for ever, because it cuts
  off the very packets that would end it.
* A policy fires at most once for each statement. It fires when it becomes true and has been true for `for`. While it
  stays true, level-triggered actions (quarantine, bandwidth) fire again for each newer epoch; edge actions
  (command, webhook) do so only if they have a `cooldown`, and after it. A quarantine also fires when a node
  joins the affected ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from scentd.config import expression
from scentd.config.policy import Policy
from scentd.core.allocate.actions import action_of
from scentd.model import Firing, Profile, Sender, View
from scentd.wire import bloom, layout

STALE_INTERVALS = 3
STALE_MIN = 10.0
GLANCE_STEP = 1 / layout.GLANCE_MAX + 1e-9
OUTCOMES = (
    "fired",
    "waiting",  # true, but for less time than `for`
    "cooling",  # true, in the pause after it fired
    "already",  # true, and it has fired for this statement
    "nothing-affected",  # true, and no node to quarantine
    "false",
    "unknown",  # a value that the profile does not state
    "too-few-profiles",
    "stale",
    "error",  # the expression failed on these values, e.g. a division by zero
)


@dataclass(frozen=True, slots=True)
class Assessment:
    """How one policy stands for one peer at one moment, and why."""

    policy: str
    peer: str
    epoch: int
    outcome: str  # one of OUTCOMES
    detail: str  # e.g. "unknown: memory", "true for 2.0 of 5 s"
    reason: str  # the expression and the values it saw


@dataclass(frozen=True, slots=True)
class Standing:
    """How one policy has stood, over all its peers, since its first evaluation."""

    policy: str
    outcomes: dict[str, int]  # how often decide() had each outcome
    true_now: int  # peers for which it holds, or is in its pause after it fired
    fired_at: float | None  # the last time


@dataclass(frozen=True, slots=True)
class PolicyState:
    """The state of a policy and a peer while the policy is true or cooling down."""

    since: float | None = None  # when the policy became true; it has been true without a break
    fired_at: float | None = None
    fired_epoch: int | None = None  # the epoch of the last firing since the policy became true
    fired_targets: frozenset[Sender] = frozenset()

    def cooling(self, now: float, cooldown: float) -> bool:
        return self.fired_at is not None and now - self.fired_at < cooldown


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of an expression on one or more profiles."""

    outcome: str  # true, or one of OUTCOMES
    detail: str = ""
    values: dict[str, float | str | bool] | None = None
    reason: str = ""


class Rule:
    """A policy, compiled. Raises ValueError if its expression is not CEL."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.program = expression.compile(policy.when)
        self.variables = tuple(self.program.references()["variables"])

    def evaluate_view(self, view: View, now: float) -> Evaluation:
        """Whether the policy holds: its expression is true on `matches` of the last `profiles` profiles."""
        policy, newest = self.policy, view.profile
        if "age" not in self.variables and age(view, now) > max(STALE_INTERVALS * newest.interval, STALE_MIN):
            return Evaluation("stale", f"last profile {age(view, now):.0f} s ago", {}, policy.when)
        window = view.profiles[: policy.profiles]
        true_count, best, first = 0, None, None
        for i, profile in enumerate(window):
            evaluation = self.evaluate_profile(variables(view, profile, now), profile)
            first = first or evaluation
            true_count += evaluation.outcome == "true"
            best = best or (evaluation if evaluation.outcome == "true" else None)
            if true_count == policy.matches or true_count + len(window) - i - 1 < policy.matches:
                break
        assert first is not None  # a View has at least one profile
        chosen = best or first
        reason = f"{policy.when} [{format_values(chosen.values or {})}]"
        if policy.profiles > 1:
            reason += f", in {true_count} of the last {len(window)} profiles"
        if true_count == policy.matches:
            return Evaluation("true", "", chosen.values, reason)
        if len(window) < policy.matches:
            return Evaluation("too-few-profiles", f"{len(window)} of {policy.matches}", chosen.values, reason)
        outcome = "false" if first.outcome == "true" else first.outcome
        return Evaluation(outcome, first.detail, chosen.values, reason)

    def evaluate_profile(self, values: dict[str, float | str], profile: Profile) -> Evaluation:
        seen: dict[str, float | str | bool] = {name: values[name] for name in self.variables if name in values}

        def has(item: str) -> bool:
            contained = bloom.contains(profile.bloom, profile.epoch, item)
            seen[f'has("{item}")'] = contained
            return contained

        try:
            result = self.program.execute({**values, expression.HAS_FUNCTION: has})
        except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
            missing = [name for name in self.variables if name not in values]
            if missing:
                return Evaluation("unknown", f"unknown: {', '.join(missing)}", seen)
            return Evaluation("error", str(error).split("\n")[0][:200], seen)
        return Evaluation("true" if result is True else "false", "", seen)


class Decider:
    """Applies the policies to one view after the other. Keeps state only of policies that are true or cooling down."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        self._rules = [Rule(p) for p in policies]
        self._states: dict[tuple[str, str], PolicyState] = {}
        self._counts: Counter[tuple[str, str]] = Counter()
        self._fired_at: dict[tuple[str, str], float] = {}  # the last firing, by policy and peer

    def decide(self, view: View, now: float) -> list[Firing]:
        """The firings for this peer now. `now` is Unix seconds, the clock of received_at."""
        firings = []
        for rule in self._rules_for(view.peer):
            key = rule.policy.name, view.peer
            evaluation = rule.evaluate_view(view, now)
            targets = action_of(rule.policy.do).targets(rule.policy.do, view)
            state, outcome, _ = step(self._state(key, now), rule.policy, evaluation, targets, view.profile.epoch, now)
            self._counts[rule.policy.name, outcome] += 1
            if key in self._fired_at:
                self._fired_at[key] = min(self._fired_at[key], now)
            if state is None:
                self._states.pop(key, None)
            else:
                self._states[key] = state
            if outcome == "fired":
                last_firing = self._fired_at.get(key, 0.0)
                self._fired_at[key] = now
                firings.append(make_firing(rule.policy, view, evaluation, targets, last_firing, now))
        return firings

    def explain(self, view: View, now: float) -> list[Assessment]:
        """How each policy stands for this peer. It changes no state."""
        assessments = []
        for rule in self._rules_for(view.peer):
            evaluation, targets = rule.evaluate_view(view, now), action_of(rule.policy.do).targets(rule.policy.do, view)
            state = self._state((rule.policy.name, view.peer), now)
            _, outcome, detail = step(state, rule.policy, evaluation, targets, view.profile.epoch, now)
            assessments.append(
                Assessment(rule.policy.name, view.peer, view.profile.epoch, outcome, detail, evaluation.reason)
            )
        return assessments

    def standings(self) -> list[Standing]:
        """How each policy stands, over all peers."""
        true = Counter(policy for policy, _ in self._states)
        last: dict[str, float] = {}
        for (policy, _), at in self._fired_at.items():
            last[policy] = max(at, last.get(policy, at))
        return [
            Standing(
                rule.policy.name,
                {o: n for o in OUTCOMES if (n := self._counts[rule.policy.name, o])},
                true[rule.policy.name],
                last.get(rule.policy.name),
            )
            for rule in self._rules
        ]

    def retain(self, peers: Collection[str]) -> None:
        """Keep the state of these peers alone."""
        self._states = {key: state for key, state in self._states.items() if key[1] in peers}
        self._fired_at = {key: at for key, at in self._fired_at.items() if key[1] in peers}

    def reload(self, policies: Sequence[Policy]) -> None:
        """Take new policies; unchanged ones keep their state. Raises ValueError before it changes anything."""
        same = {r.policy.name for r in self._rules if r.policy in policies}
        self._rules = [Rule(p) for p in policies]
        names = {p.name for p in policies}
        self._states = {key: state for key, state in self._states.items() if key[0] in same}
        self._counts = Counter({key: n for key, n in self._counts.items() if key[0] in names})
        self._fired_at = {key: at for key, at in self._fired_at.items() if key[0] in names}

    def _state(self, key: tuple[str, str], now: float) -> PolicyState | None:
        """Of a policy and a peer. A clock that was set back to before the last firing brings its pause back, once."""
        last_firing = self._fired_at.get(key, now)
        return self._states.get(key) or (PolicyState(fired_at=last_firing) if last_firing > now else None)

    def _rules_for(self, peer: str) -> list[Rule]:
        return [r for r in self._rules if r.policy.peer in ("*", peer)]


def step(
    state: PolicyState | None,
    policy: Policy,
    evaluation: Evaluation,
    targets: tuple[Sender, ...],
    epoch: int,
    now: float,
) -> tuple[PolicyState | None, str, str]:
    """(the next state, the outcome, its detail). The policy fires if the outcome is "fired"."""
    action, state = action_of(policy.do), state or PolicyState()
    if state.fired_at is not None and state.fired_at > now:
        state = replace(state, fired_at=now)  # the clock was set back: the pause begins anew
    cooling = state.cooling(now, policy.cooldown)
    if evaluation.outcome != "true":
        kept = PolicyState(fired_at=state.fired_at) if cooling else None
        return kept, evaluation.outcome, evaluation.detail
    if state.since is None or state.since > now:
        state = replace(state, since=now)
    duration = now - (state.since or 0.0)
    if duration < policy.hold:
        return state, "waiting", f"true for {duration:.1f} of {policy.hold:g} s"
    if cooling:
        return state, "cooling", f"fired {now - (state.fired_at or now):.1f} s ago, cooldown {policy.cooldown:g} s"
    if action.needs_targets and not targets:
        return state, "nothing-affected", "no affected node has been seen"
    repeats = policy.cooldown > 0 or action.level_triggered
    first = state.fired_epoch is None
    if not (first or (repeats and epoch != state.fired_epoch) or set(targets) - state.fired_targets):
        return state, "already", f"fired for epoch {state.fired_epoch}"
    return replace(state, fired_at=now, fired_epoch=epoch, fired_targets=frozenset(targets)), "fired", ""


def make_firing(
    policy: Policy, view: View, evaluation: Evaluation, targets: tuple[Sender, ...], last_firing: float, now: float
) -> Firing:
    """`last_firing`: when the policy last fired for this peer; 0.0 if it never did."""
    alarm = view.alarm_at > last_firing and "threat" in (evaluation.values or {})
    return Firing(
        at=now,
        policy=policy,
        peer=view.peer,
        epoch=view.profile.epoch,
        targets=targets,
        values=evaluation.values or {},
        reason=evaluation.reason,
        accepted_at=view.alarm_at if alarm else view.received_at,
        alarm=alarm,
    )


def age(view: View, now: float) -> float:
    return max(0.0, now - view.received_at)


def variables(view: View, profile: Profile, now: float) -> dict[str, float | str]:
    """The variables of an expression on this profile. A value that the profile does not state has no variable."""
    newest = view.profile
    values: dict[str, float | str] = {
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


def format_values(values: dict[str, float | str | bool]) -> str:
    def text(value: float | str | bool) -> str:
        return str(value).lower() if isinstance(value, bool) else value if isinstance(value, str) else f"{value:.10g}"

    return ", ".join(f"{name}={text(value)}" for name, value in values.items())
