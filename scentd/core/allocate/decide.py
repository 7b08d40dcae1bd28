"""Views and policies in, firings out. Pure: time is an argument, nothing is read or written.

A policy's `when` is CEL (Common Expression Language) over one profile. Its variables are
doubles, except `peer` (text):

    every metric    the profile's level; `threat` is 0.0 without a reading
    overall         the profile's overall score
    load            the glance's load level; for an older profile its overall score
    age             seconds since the profile came in (older ones: plus the epochs between)
    interval epoch  as the profile states them

and `has("role=db;metric=cpu;level=high")` asks the profile's Bloom filter. If the action names a resource, there are

    current                what serves the peer now
    minimum maximum        of the resource

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
  stays true, level-triggered actions (quarantine, amount) fire again for each newer epoch; edge actions
  (command, webhook) do so only if they have a `cooldown`, and after it. A quarantine also fires when a node
  joins the affected ones. An amount fires only if it is another one than before, and
  one that counts on what there is only after a profile that was measured whole since that changed ("settling").
* Policies are looked at when a profile, a glance or a node is new, and when their own time has come (`due`).
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from scentd.config.policy import Policy
from scentd.core.allocate.amounts import Amounts
from scentd.core.allocate.entry import Wish
from scentd.core.allocate.rule import Facts, Rule, Verdict
from scentd.model import Firing, Sender, View

AGE_SECONDS = 1.0  # how often an expression that uses `age` is looked at while no profile comes
OUTCOMES = (
    "fired",
    "waiting",  # true, but for less time than `for`
    "cooling",  # true, in the pause after it fired
    "already",  # true, and it has fired for this statement, or asks for what it has asked for
    "nothing-affected",  # true, and no node to quarantine
    "settling",  # true, and what there is changes just now, or the levels are of before it did
    "no-amount",  # true, and the expression of `to` gives no number
    "false",
    "unknown",  # a value that the profile does not state
    "too-few-profiles",
    "stale",
    "error",  # the expression failed on these values, e.g. a division by zero
)
ASKING = ("fired", "already", "no-amount")  # outcomes for which the amount's expression was looked at


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
    asked: float | None = None  # the amount that it wants, if it wants one for as long as it holds

    def cooling(self, now: float, cooldown: float) -> bool:
        return self.fired_at is not None and now - self.fired_at < cooldown


class Decider:
    """Applies the policies to one view after the other. Keeps state only of policies that are true or cooling down."""

    def __init__(self, policies: Sequence[Policy], amounts: Amounts) -> None:
        self._amounts = amounts
        self._states: dict[tuple[str, str], PolicyState] = {}
        self._counts: dict[str, Counter[str]] = {}
        self._fired_at: dict[tuple[str, str], float] = {}  # the last firing, by policy and peer
        self._due: list[tuple[float, str]] = []
        self._due_at: dict[str, float] = {}  # by peer the earliest of its times in _due
        self._unsaved: set[tuple[str, str]] = set()
        self._use([Rule(p, amounts.resources) for p in policies])

    def decide(self, view: View, now: float, only_here: bool = False) -> list[Firing]:
        """The firings for this peer now. `now` is Unix seconds, the clock of received_at. With `only_here` those alone
        of policies that keep something on this host: another allocator looks at the others.
        """
        facts, firings = Facts(view, now), []
        for rule in self._rules_for(view.peer):
            if only_here and not rule.only_here:
                continue
            firing = self._apply(rule, facts)
            if firing is not None:
                firings.append(firing)
        return firings

    def due(self, now: float) -> list[str]:
        """The peers of which a policy may stand otherwise now although nothing new is known of them."""
        peers = []
        while self._due and self._due[0][0] <= now:
            at, peer = heapq.heappop(self._due)
            if self._due_at.get(peer) == at:
                del self._due_at[peer]
                peers.append(peer)
        return peers

    def next_due(self) -> float:
        """When due() next has a peer; infinity: never."""
        return self._due[0][0] if self._due else float("inf")

    def explain(self, view: View, now: float) -> list[Assessment]:
        """How each policy stands for this peer. It changes no state."""
        facts, assessments = Facts(view, now), []
        for rule in self._rules_for(view.peer):
            bounds = self._bounds(rule, view.peer)
            evaluation = rule.evaluate_view(facts, bounds)
            verdict = Verdict(evaluation.outcome, evaluation.detail)
            before = self._state((rule.policy.name, view.peer), now)
            _, outcome, detail = self._step(rule, facts, bounds, verdict, before)
            reason = evaluation.reason + (rule.amount_reason(facts, bounds) if outcome in ASKING else "")
            assessments.append(Assessment(rule.policy.name, view.peer, view.profile.epoch, outcome, detail, reason))
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
                {o: n for o in OUTCOMES if (n := self._counts[rule.policy.name][o])},
                true[rule.policy.name],
                last.get(rule.policy.name),
            )
            for rule in self._rules
        ]

    def retain(self, peers: Collection[str]) -> None:
        """Keep the state of these peers alone."""
        self._states = {key: state for key, state in self._states.items() if key[1] in peers}
        self._fired_at = {key: at for key, at in self._fired_at.items() if key[1] in peers}

    def reload(self, policies: Sequence[Policy], amounts: Amounts) -> None:
        """Take new policies; unchanged ones keep their state. Raises ValueError before it changes anything."""
        same = {r.policy.name for r in self._rules if r.policy in policies}
        self._use([Rule(p, amounts.resources) for p in policies])
        self._amounts = amounts
        self._states = {key: state for key, state in self._states.items() if key[0] in same}
        self._fired_at = {key: at for key, at in self._fired_at.items() if key[0] in self._counts}

    def take_unsaved(self) -> dict[tuple[str, str], PolicyState | None]:
        """By policy and peer the states that changed since the last call; None: there is none any more."""
        keys, self._unsaved = self._unsaved, set()
        return {key: self._states.get(key) for key in keys}

    def restore(self, states: Mapping[tuple[str, str], PolicyState]) -> None:
        """Take over what an earlier run has known, of policies that are still configured."""
        self._states = {key: state for key, state in states.items() if key[0] in self._counts} | self._states
        for key, state in self._states.items():
            if state.fired_at is not None:
                self._fired_at.setdefault(key, state.fired_at)

    def fired_elsewhere(self, policy: str, peer: str, at: float, epoch: int | None) -> None:
        """The policy has fired for this peer at another allocator: its cooldown runs from then, and it does not fire
        again for this epoch; None: there is a newer one.
        """
        key = policy, peer
        if policy in self._counts and at > self._fired_at.get(key, 0.0):
            self._fired_at[key] = at
            self._states[key] = replace(self._states.get(key, PolicyState()), fired_at=at, fired_epoch=epoch)

    def ask_again(self) -> None:
        """What policies have asked for is forgotten: those that hold ask for it at the next epoch."""
        for key, state in self._states.items():
            if state.asked is not None:
                self._states[key] = replace(state, asked=None, fired_epoch=None)
                self._unsaved.add(key)

    # -- one rule, one view --------------------------------------------------

    def _use(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._counts = {r.policy.name: self._counts.get(r.policy.name, Counter()) for r in rules}
        self._for_all = [r for r in rules if r.peer == "*"]
        named = {r.peer for r in rules} - {"*"}
        self._for_one = {peer: [r for r in rules if r.peer in ("*", peer)] for peer in named}

    def _rules_for(self, peer: str) -> Sequence[Rule]:
        return self._for_one.get(peer, self._for_all)

    def _bounds(self, rule: Rule, peer: str) -> Mapping[str, float]:
        return self._amounts.bounds(rule.request.resource.name, peer) if rule.request is not None else {}

    def _is_settling(self, rule: Rule, facts: Facts) -> bool:
        if rule.request is None or not rule.counts_on_current:
            return False
        newest, peer = facts.view.profile, facts.view.peer
        measured_at = min(newest.epoch, facts.view.received_at) - newest.interval
        return self._amounts.is_settling(rule.request.resource.name, peer, measured_at, facts.now)

    def _state(self, key: tuple[str, str], now: float) -> PolicyState | None:
        """Of a policy and a peer. A clock that was set back to before the last firing brings its pause back, once."""
        last_firing = self._fired_at.get(key, now)
        return self._states.get(key) or (PolicyState(fired_at=last_firing) if last_firing > now else None)

    def _apply(self, rule: Rule, facts: Facts) -> Firing | None:
        policy, view, now = rule.policy, facts.view, facts.now
        key = policy.name, view.peer
        bounds = self._bounds(rule, view.peer)
        verdict, before = rule.outcome(facts, bounds), self._state(key, now)
        if rule.uses_age:
            self._wake(view.peer, now + AGE_SECONDS)
        if before is None and verdict.outcome != "true":  # so it is nearly always
            self._counts[policy.name][verdict.outcome] += 1
            return None
        state, outcome, _ = self._step(rule, facts, bounds, verdict, before)
        self._counts[policy.name][outcome] += 1
        if key in self._fired_at:
            self._fired_at[key] = min(self._fired_at[key], now)
        if state != before:
            self._unsaved.add(key)
        if state is None:
            self._states.pop(key, None)
        else:
            self._states[key] = state
            self._wake(view.peer, next_look(state, policy, outcome, rule.stale_at(facts)))
        if verdict.outcome != "true" and rule.request is not None and not policy.dry_run:
            self._amounts.withdraw(policy.name, rule.request.resource.name, view.peer)
        if outcome != "fired":
            return None
        last_firing = self._fired_at.get(key, 0.0)
        self._fired_at[key] = now
        repeated = before is not None and before.fired_epoch is not None
        firing = make_firing(rule, facts, bounds, last_firing, repeated)
        self._wish(rule, firing)
        return firing

    def _step(
        self, rule: Rule, facts: Facts, bounds: Mapping[str, float], verdict: Verdict, state: PolicyState | None
    ) -> tuple[PolicyState | None, str, str]:
        """As step(); of an action that asks for an amount, what it asks for counts, too."""
        holds = verdict.outcome == "true"
        settling = holds and self._is_settling(rule, facts)
        asked = rule.asked(facts, bounds) if holds and rule.request is not None and not settling else None
        if asked is not None and state is not None and state.asked == asked:
            return state, "already", "wants this amount already"
        targets = rule.action.targets(rule.policy.do, facts.view) if holds and rule.action.needs_targets else ()
        after, outcome, detail = step(state, rule, verdict, targets, facts.view.profile.epoch, facts.now)
        if outcome != "fired" or rule.request is None or after is None:
            return after, outcome, detail
        if settling:
            return replace(state or PolicyState(), since=after.since), "settling", "what there is changes, or just did"
        if asked is None:
            return replace(state or PolicyState(), since=after.since), "no-amount", "its expression gives no number"
        return replace(after, asked=asked if rule.request.timeout is None else None), outcome, detail

    def _wish(self, rule: Rule, firing: Firing) -> None:
        if rule.policy.dry_run or rule.request is None or firing.asked is None:
            return
        timeout, resource = rule.request.timeout, rule.request.resource.name
        until = firing.at + timeout if timeout is not None else float("inf")
        wish = Wish(firing.asked, rule.policy.purpose, until, firing.epoch, firing.reason)
        self._amounts.wish(rule.policy.name, resource, firing.peer, wish)

    def _wake(self, peer: str, at: float) -> None:
        if at < self._due_at.get(peer, float("inf")):
            self._due_at[peer] = at
            heapq.heappush(self._due, (at, peer))


def next_look(state: PolicyState, policy: Policy, outcome: str, stale_at: float) -> float:
    """When a policy that is true, or cooling down, may stand otherwise by time alone."""
    if outcome == "waiting" and state.since is not None:
        return state.since + policy.hold
    if outcome == "cooling" and state.fired_at is not None:
        return state.fired_at + policy.cooldown
    return stale_at + 0.001  # at `stale_at` it is not stale yet


def step(
    state: PolicyState | None,
    rule: Rule,
    verdict: Verdict,
    targets: tuple[Sender, ...],
    epoch: int,
    now: float,
) -> tuple[PolicyState | None, str, str]:
    """(the next state, the outcome, its detail). The policy fires if the outcome is "fired"."""
    action, policy, state = rule.action, rule.policy, state or PolicyState()
    if state.fired_at is not None and state.fired_at > now:
        state = replace(state, fired_at=now)  # the clock was set back: the pause begins anew
    cooling = state.cooling(now, policy.cooldown)
    if verdict.outcome != "true":
        kept = PolicyState(fired_at=state.fired_at) if cooling else None
        return kept, verdict.outcome, verdict.detail
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


def make_firing(rule: Rule, facts: Facts, bounds: Mapping[str, float], last_firing: float, repeated: bool) -> Firing:
    """`last_firing`: when the policy last fired for this peer; 0.0 if it never did."""
    view, policy, evaluation = facts.view, rule.policy, rule.evaluate_view(facts, bounds)
    alarm = view.alarm_at > last_firing and "threat" in (evaluation.values or {})
    return Firing(
        at=facts.now,
        policy=policy,
        peer=view.peer,
        epoch=view.profile.epoch,
        targets=rule.action.targets(policy.do, view),
        values=evaluation.values or {},
        reason=evaluation.reason + rule.amount_reason(facts, bounds),
        accepted_at=view.alarm_at if alarm else view.received_at,
        alarm=alarm,
        repeated=repeated,
        asked=rule.asked(facts, bounds) if rule.request is not None else None,
    )
