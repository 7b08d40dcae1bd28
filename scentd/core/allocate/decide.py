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

* A value that the profile does not state makes the policy not hold ("unknown"), whatever the
  expression makes of it, unless the rest decides it alone: `cpu > 0.8 || has("x")`.
* The glance is tagged, not signed, and coarse (1/15). It raises `threat` of the newest profile when it is
  more than one step above it: an alarm whose profile is still on its way. It never lowers
  `threat`: the all-clear is the next signed profile. `age` and the k of n go by profiles.
* Three intervals (at least STALE_MIN seconds) after its last profile nothing is known of a peer and no
  policy holds, unless it asks for `age`. Without this a quarantine would renew itself for ever:
  it cuts off the very packets that would end it.
* The same statement is acted on once: a policy fires when it becomes true (and was so for `for`), and while
  it stays true again for a newer epoch: level-triggered actions (quarantine, bandwidth) for
  each, edge actions (command, webhook) only if they have a `cooldown`, after it. A quarantine also
  fires when a node joins the affected ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from scentd.config import expression
from scentd.config.policy import Policy
from scentd.core.allocate.actions import action_of
from scentd.model import Firing, Profile, View
from scentd.prefix import Prefix
from scentd.wire import bloom, layout

STALE_INTERVALS = 3
STALE_MIN = 10.0
GLANCE_STEP = 1 / layout.GLANCE_MAX + 1e-9
OUTCOMES = (
    "fired",
    "waiting",  # true, but not yet for so long as `for` says
    "cooling",  # true, in the pause after it fired
    "already",  # true, and acted on
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
    """How one policy has stood, over all its peers, since it was first looked at."""

    policy: str
    outcomes: dict[str, int]  # how often decide() came to each
    true_now: int  # peers for which it holds, or is in its pause after it fired
    fired_at: float | None  # the last time


@dataclass(frozen=True, slots=True)
class PolicyState:
    """What is remembered of a policy and a peer while the policy is true or cooling down."""

    since: float | None = None  # true without a break since then
    fired_at: float | None = None
    fired_epoch: int | None = None  # since it became true
    fired_targets: frozenset[Prefix] = frozenset()

    def cooling(self, now: float, cooldown: float) -> bool:
        return self.fired_at is not None and now - self.fired_at < cooldown


@dataclass(frozen=True, slots=True)
class Look:
    """One evaluation of an expression on one or more profiles."""

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

    def look(self, view: View, now: float) -> Look:
        """Whether the policy holds: true on `matches` of the last `profiles` profiles."""
        policy, newest = self.policy, view.profile
        if "age" not in self.variables and age(view, now) > max(STALE_INTERVALS * newest.interval, STALE_MIN):
            return Look("stale", f"last profile {age(view, now):.0f} s ago", {}, policy.when)
        window = view.profiles[: policy.profiles]
        held, best, first = 0, None, None
        for i, profile in enumerate(window):
            look = self.evaluate(variables(view, profile, now), profile)
            first = first or look
            held += look.outcome == "true"
            best = best or (look if look.outcome == "true" else None)
            if held == policy.matches or held + len(window) - i - 1 < policy.matches:
                break
        assert first is not None  # a View has at least one profile
        chosen = best or first
        reason = f"{policy.when} [{shown(chosen.values or {})}]"
        if policy.profiles > 1:
            reason += f", in {held} of the last {len(window)} profiles"
        if held == policy.matches:
            return Look("true", "", chosen.values, reason)
        if len(window) < policy.matches:
            return Look("too-few-profiles", f"{len(window)} of {policy.matches}", chosen.values, reason)
        outcome = "false" if first.outcome == "true" else first.outcome
        return Look(outcome, first.detail, chosen.values, reason)

    def evaluate(self, known: dict[str, float | str], profile: Profile) -> Look:
        seen: dict[str, float | str | bool] = {name: known[name] for name in self.variables if name in known}

        def has(item: str) -> bool:
            found = bloom.contains(profile.bloom, profile.epoch, item)
            seen[f'has("{item}")'] = found
            return found

        try:
            result = self.program.execute({**known, expression.HAS_FUNCTION: has})
        except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
            missing = [name for name in self.variables if name not in known]
            if missing:
                return Look("unknown", f"unknown: {', '.join(missing)}", seen)
            return Look("error", str(error).split("\n")[0][:200], seen)
        return Look("true" if result is True else "false", "", seen)


class Decider:
    """Applies the policies to one view after the other. Remembers only what is true or cooling down."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        self._rules = [Rule(p) for p in policies]
        self._states: dict[tuple[str, str], PolicyState] = {}
        self._counts: Counter[tuple[str, str]] = Counter()
        self._fired_at: dict[tuple[str, str], float] = {}  # the last time, by policy and peer

    def decide(self, view: View, now: float) -> list[Firing]:
        """The policies that fire for this peer now. `now` is Unix seconds, the clock of received_at."""
        firings = []
        for rule in self._rules_for(view.peer):
            key = rule.policy.name, view.peer
            look = rule.look(view, now)
            targets = action_of(rule.policy.do).targets(rule.policy.do, view)
            state, outcome, _ = step(self._states.get(key), rule.policy, look, targets, view.profile.epoch, now)
            self._counts[rule.policy.name, outcome] += 1
            if state is None:
                self._states.pop(key, None)
            else:
                self._states[key] = state
            if outcome == "fired":
                before = self._fired_at.get(key, 0.0)
                self._fired_at[key] = now
                firings.append(fired(rule.policy, view, look, targets, before, now))
        return firings

    def explain(self, view: View, now: float) -> list[Assessment]:
        """How each policy stands for this peer; changes nothing."""
        stands = []
        for rule in self._rules_for(view.peer):
            look, targets = rule.look(view, now), action_of(rule.policy.do).targets(rule.policy.do, view)
            state = self._states.get((rule.policy.name, view.peer))
            _, outcome, detail = step(state, rule.policy, look, targets, view.profile.epoch, now)
            stands.append(Assessment(rule.policy.name, view.peer, view.profile.epoch, outcome, detail, look.reason))
        return stands

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
        """Forget all other peers."""
        self._states = {key: state for key, state in self._states.items() if key[1] in peers}
        self._fired_at = {key: at for key, at in self._fired_at.items() if key[1] in peers}

    def reload(self, policies: Sequence[Policy]) -> None:
        """Take over new policies; unchanged ones keep their state. Raises ValueError, and changes nothing."""
        same = {r.policy.name for r in self._rules if r.policy in policies}
        self._rules = [Rule(p) for p in policies]
        names = {p.name for p in policies}
        self._states = {key: state for key, state in self._states.items() if key[0] in same}
        self._counts = Counter({key: n for key, n in self._counts.items() if key[0] in names})
        self._fired_at = {key: at for key, at in self._fired_at.items() if key[0] in names}

    def _rules_for(self, peer: str) -> list[Rule]:
        return [r for r in self._rules if r.policy.peer in ("*", peer)]


def step(
    state: PolicyState | None, policy: Policy, look: Look, targets: tuple[Prefix, ...], epoch: int, now: float
) -> tuple[PolicyState | None, str, str]:
    """The next state, the outcome and its detail. Fires if the outcome is "fired"."""
    action, state = action_of(policy.do), state or PolicyState()
    if state.fired_at is not None and state.fired_at > now:
        state = replace(state, fired_at=now)  # the clock was set back: pause once more, not for the difference
    cooling = state.cooling(now, policy.cooldown)
    if look.outcome != "true":
        kept = PolicyState(fired_at=state.fired_at) if cooling else None
        return kept, look.outcome, look.detail
    if state.since is None or state.since > now:
        state = replace(state, since=now)
    held = now - (state.since or 0.0)
    if held < policy.hold:
        return state, "waiting", f"true for {held:.1f} of {policy.hold:g} s"
    if cooling:
        return state, "cooling", f"fired {now - (state.fired_at or now):.1f} s ago, cooldown {policy.cooldown:g} s"
    if action.needs_targets and not targets:
        return state, "nothing-affected", "no affected node has been seen"
    repeats = policy.cooldown > 0 or action.level_triggered
    first = state.fired_epoch is None
    if not (first or (repeats and epoch != state.fired_epoch) or set(targets) - state.fired_targets):
        return state, "already", f"fired for epoch {state.fired_epoch}"
    return replace(state, fired_at=now, fired_epoch=epoch, fired_targets=frozenset(targets)), "fired", ""


def fired(policy: Policy, view: View, look: Look, targets: tuple[Prefix, ...], before: float, now: float) -> Firing:
    """`before`: when the policy fired for this peer the last time, 0.0: never."""
    alarm = view.alarm_at > before and "threat" in (look.values or {})
    return Firing(
        at=now,
        policy=policy,
        peer=view.peer,
        epoch=view.profile.epoch,
        targets=targets,
        values=look.values or {},
        reason=look.reason,
        accepted_at=view.alarm_at if alarm else view.received_at,
        alarm=alarm,
    )


def age(view: View, now: float) -> float:
    return max(0.0, now - view.received_at)


def variables(view: View, profile: Profile, now: float) -> dict[str, float | str]:
    """What an expression may use of this profile; what it does not state is not there."""
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


def shown(values: dict[str, float | str | bool]) -> str:
    def text(value: float | str | bool) -> str:
        return str(value).lower() if isinstance(value, bool) else value if isinstance(value, str) else f"{value:.10g}"

    return ", ".join(f"{name}={text(value)}" for name, value in values.items())
