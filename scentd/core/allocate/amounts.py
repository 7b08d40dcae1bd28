"""What each resource should be for each peer, of all that policies wish. Pure: time is an argument.

A policy's wish stands while the policy holds, or until its `timeout` is over. Of the wishes that stand for one resource
and peer:

* safety before all: of the wishes of policies with `purpose = "safety"` the strictest counts, and nothing else;
* growth before saving: otherwise the largest amount counts. So something is taken back only if no wish wants it kept;
* without a wish the amount stays; it returns to `normal` if the last wish was one with a `timeout`.

Then come the resource's bounds, its `step` (from what there is; safety takes any), and the budget. Nothing is taken
back from a resource that is `protected`, within `provide` seconds after an addition or `take_back` seconds after less
was given (the effect is not to be seen yet), or from one that goes up and down all the time: TURNS_MAX turns within
TURN_SECONDS are an oscillation, which is told with the policies' names, and for PAUSE seconds it is only raised.

A resource has no desired amount before it was observed: what is there at first is taken over, within the bounds.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from scentd.config.budget import Budget
from scentd.config.policy import Purpose
from scentd.config.resource import Resource
from scentd.core.allocate.entry import (
    PAUSE,
    TURN_SECONDS,
    TURNS_MAX,
    AmountEntry,
    Key,
    Wish,
    bounded,
    is_settling,
    one_step,
    oscillating,
    same,
    take_observed,
    winner,
)
from scentd.core.allocate.pool import Pool
from scentd.model import Decision, PriorWish

NOTHING: Mapping[str, PriorWish] = {}


class Amounts:
    """The desired amounts. `settle` makes them of the wishes; `take_changes` says what changed."""

    def __init__(self, resources: Sequence[Resource], budgets: Sequence[Budget], peers: Iterable[str]) -> None:
        self.resources = {r.name: r for r in resources}
        self._served = {r.name: [p for p in peers if r.peer in ("*", p)] for r in resources}
        self._entries: dict[str, dict[str, AmountEntry]] = {
            name: {peer: AmountEntry() for peer in served} for name, served in self._served.items()
        }
        self._pools: dict[Key, Pool] = {}
        for budget in budgets:
            self._add_pool(budget)
        self._short: set[Pool] = set()  # pools that were short when they were shared last, or are now
        self._dirty: set[Key] = set()
        self._changes: dict[str, dict[str, float]] = {}
        self._due: list[tuple[float, Key]] = []
        self._unsaved: set[Key] = set()
        self._followed: dict[Key, PriorWish] = {}  # since this allocator has decided last
        self._renewed: set[Key] = set()  # whose wish with a timeout stands for longer now
        self.purposes: Mapping[str, Purpose | None] = {}  # of policies, for wishes of another allocator
        self.held: frozenset[str] = frozenset()  # names of resources and peers, or "*", that `scentd hold` holds

    def _add_pool(self, budget: Budget) -> None:
        chosen = frozenset(budget.peers)
        members = [
            (name, peer) for name in budget.resources for peer in self._served[name] if not chosen or peer in chosen
        ]
        pool = Pool(budget, members, all(self.resources[name].whole for name in budget.resources))
        self._pools |= dict.fromkeys(members, pool)

    # -- what policies want --------------------------------------------------

    def bounds(self, resource: str, peer: str) -> dict[str, float]:
        """The variables of expressions that ask for this resource."""
        section, entry = self.resources[resource], self._entries[resource].get(peer)
        known = (entry.observed, entry.desired) if entry is not None else ()
        current = next((amount for amount in known if amount is not None), section.usual)
        return {"current": float(current), "minimum": section.minimum, "maximum": section.maximum}

    def is_settling(self, resource: str, peer: str, measured_at: float, now: float) -> bool:
        """Whether levels whose measuring began at `measured_at` say nothing of what there is: it changes, or did."""
        entry = self._entries[resource].get(peer)
        return entry is not None and is_settling(entry, self.resources[resource], measured_at, now)

    def wish(self, policy: str, resource: str, peer: str, wish: Wish) -> None:
        """A policy wants something. It replaces what the policy has wanted of this resource and peer before."""
        entry = self.entry(resource, peer)
        if entry is not None:
            entry.wishes[policy] = wish
            entry.silent = False
            self._touch((resource, peer))

    def withdraw(self, policy: str, resource: str, peer: str) -> None:
        """A policy holds no longer. A wish with a timeout stands until then."""
        entry = self.entry(resource, peer)
        if entry is not None and policy in entry.wishes and entry.wishes[policy].until == math.inf:
            del entry.wishes[policy]
            self._touch((resource, peer))

    # -- what is there -------------------------------------------------------

    def observe(
        self,
        resource: str,
        amounts: Mapping[str, float],
        drifted: Iterable[str],
        now: float,
        wanted: Mapping[str, PriorWish] = NOTHING,
    ) -> list[Decision]:
        """Take what a back end has seen: all peers that have some. `drifted`: peers whose amount somebody else has
        changed since it was applied; `wanted`: what its host was told to give. Returns decisions about the drifted.
        """
        section, decisions = self.resources.get(resource), []
        if section is None:
            return []
        drifted = set(drifted)
        for peer, entry in self._entries[resource].items():
            changed = take_observed(entry, amounts.get(peer, 0.0), now)
            if entry.desired is None:
                self._take_over(section, peer, entry, wanted.get(peer) or PriorWish(amounts.get(peer, section.usual)))
            elif peer in drifted:
                decisions.append(self._drift(section, entry, peer, now))
            if changed and entry.wishes:
                self._dirty.add((resource, peer))
        return decisions

    def give(self, resource: str, amounts: Mapping[str, float]) -> None:
        """Take these amounts for observed, of these peers alone."""
        for peer, amount in amounts.items():
            entry = self.entry(resource, peer)
            if entry is not None:
                entry.observed = amount

    def follow(self, resource: str, amounts: Mapping[str, float], wanted: Mapping[str, PriorWish]) -> None:
        """The same while another allocator decides: what that one wants is what this one would begin with."""
        section = self.resources.get(resource)
        if section is None:
            return
        for peer, entry in self._entries[resource].items():
            entry.observed = amounts.get(peer, 0.0)
            prior = wanted.get(peer) or PriorWish(amounts.get(peer, section.usual))
            if self._followed.get((resource, peer)) != prior:
                self._followed[resource, peer] = prior
                entry.wishes, entry.timed = {}, False
                self._take_over(section, peer, entry, prior)

    def begin_anew(self, resources: Iterable[str]) -> None:
        """Forget what was wanted of these: what is observed next is taken over."""
        for name in resources:
            self._entries[name] = {peer: AmountEntry() for peer in self._entries[name]}

    def _take_over(self, section: Resource, peer: str, entry: AmountEntry, wanted: PriorWish) -> None:
        """Begin with what was wanted before this allocator decided. A wish with a timeout stands until then."""
        entry.changed_by, entry.changed_at = wanted.policy, wanted.since
        entry.grown_at = max(entry.grown_at, wanted.since)
        if wanted.until < math.inf:
            reason = "wanted before this allocator decided"
            wish = Wish(wanted.amount, self.purposes.get(wanted.policy), wanted.until, 0, reason)
            entry.wishes.setdefault(wanted.policy, wish)
            entry.timed = True
            self._dirty.add((section.name, peer))
        self._begin(section, peer, entry, wanted.amount)

    def _begin(self, section: Resource, peer: str, entry: AmountEntry, found: float) -> None:
        """Take over what is there at first."""
        self._set(entry, (section.name, peer), min(max(found, section.minimum), section.maximum))
        pool = self._pools.get((section.name, peer))
        if pool is not None and entry.desired is not None:
            pool.ask((section.name, peer), entry.desired)

    def _drift(self, section: Resource, entry: AmountEntry, peer: str, now: float) -> Decision:
        assert entry.observed is not None
        assert entry.desired is not None
        reason = "somebody else has changed it, or it has failed"
        before, after = section.amount_text(entry.observed), section.amount_text(entry.desired)
        if section.drift == "report":
            before, after = after, before
            reason += '; drift = "report" takes it over'
            self._set(entry, (section.name, peer), min(max(entry.observed, section.minimum), section.maximum))
        return Decision(now, peer, "", 0, "drift", section.name, before, after, reason)

    def silent(self, peer: str, received_at: float, now: float) -> list[Decision]:
        """The peer's last profile is of `received_at`: bring what has a fallback to it, if that is long ago."""
        decisions = []
        for section in self.resources.values():
            entry = self.entry(section.name, peer)
            if entry is None or section.fallback is None or entry.silent or entry.desired is None:
                continue
            if now - received_at > section.fallback_after and not self._is_held(section.name, peer):
                entry.silent = True
                entry.wishes.clear()
                reason = f"no profile for {section.fallback_after:g} s: fallback"
                wish = Wish(section.fallback, None, math.inf, 0, reason)
                decisions += self._move(section, entry, peer, section.fallback, now, wish, "")
        return decisions

    # -- one amount of all wishes -------------------------------------------

    def settle(self, now: float, share_all: bool = True) -> list[Decision]:
        """Make amounts of what has changed and of what is due. Returns a Decision for each amount that changes.

        Without `share_all` a budget that is short waits: to share it anew takes a while if it has many members.
        """
        self._followed.clear()
        while self._due and self._due[0][0] <= now:
            at, key = heapq.heappop(self._due)
            entry = self.entry(*key)
            if entry is not None and entry.due == at:
                entry.due = math.inf
                self._dirty.add(key)
        dirty, self._dirty = self._dirty, set()
        decisions: list[Decision] = []
        pools: set[Pool] = set(self._short) if share_all else set()
        for key in dirty:
            entry = self.entry(*key)
            if entry is None:
                continue
            if entry.desired is None or self._is_held(*key):
                self._dirty.add(key)
                continue
            decisions += self._settle_one(key, entry, now)
            if key in self._pools:
                pools.add(self._pools[key])
        for pool in pools:
            decisions += self._share(pool, now, share_all)
        return decisions

    def _settle_one(self, key: Key, entry: AmountEntry, now: float) -> list[Decision]:
        resource, peer = key
        section = self.resources[resource]
        assert entry.desired is not None  # settle() has looked
        ended = [policy for policy, wish in entry.wishes.items() if wish.until <= now]
        for policy in ended:
            del entry.wishes[policy]
            self._unsaved.add(key)
        policy, wish = winner(section, entry.wishes)
        if wish is None:
            if not entry.timed:
                return []
            want = section.usual
            wish = Wish(want, "safety", math.inf, 0, f"the wish of {' and '.join(ended) or 'a policy'} ended")
            entry.timed = False
        else:
            want = wish.amount
            entry.timed = wish.until < math.inf
            if entry.timed:
                self._renewed.add(key)
            self._wake(key, entry, min(w.until for w in entry.wishes.values()))
        current = entry.desired if entry.observed is None else entry.observed
        want = bounded(section, want)
        if section.step is not None and wish.purpose != "safety":
            want = one_step(want, entry.desired, current, section.step)
        if want < entry.desired and wish.purpose != "safety":
            if section.protected:
                return []
            free_at = max(entry.grown_at + section.provide, entry.shrunk_at + section.take_back, entry.paused_until)
            if now < free_at:
                self._wake(key, entry, free_at)
                return []
        pool = self._pools.get(key)
        if pool is not None:
            pool.ask(key, want)
            if want > entry.desired:
                return []  # _share() says how much of it
        return self._move(section, entry, peer, want, now, wish, policy)

    def _share(self, pool: Pool, now: float, share_all: bool) -> list[Decision]:
        """Give what is asked of a budget; shares of it, if it is short."""
        if pool.is_short or pool in self._short:
            self._short.add(pool)
            if not share_all:
                return []
            if not pool.is_short:
                self._short.discard(pool)
            entries = self._entries
            grants = pool.shares(self.resources, lambda key: entries[key[0]][key[1]].desired or 0.0)
        else:
            grants = {key: pool.asked[key] for key in pool.changed}
        pool.changed = set()
        decisions: list[Decision] = []
        for key, grant in grants.items():
            entry, section = self._entries[key[0]][key[1]], self.resources[key[0]]
            if entry.desired is None or same(grant, entry.desired) or self._is_held(*key):
                continue
            policy, wish = winner(section, entry.wishes)
            wish = wish or Wish(grant, None, math.inf, 0, "")
            if not same(grant, pool.asked[key]):
                asked = section.amount_text(pool.asked[key])
                why = f"budget {pool.budget.name}: {asked} asked, a fair share of {pool.budget.total:g}"
                wish = wish._replace(reason=f"{wish.reason}; {why}" if wish.reason else why)
            decisions += self._move(section, entry, key[1], grant, now, wish, policy)
        return decisions

    def _move(
        self, section: Resource, entry: AmountEntry, peer: str, want: float, now: float, wish: Wish, policy: str
    ) -> list[Decision]:
        assert entry.desired is not None  # the callers have looked
        old = entry.desired
        if same(old, want):
            return []
        decision = Decision(
            now,
            peer,
            policy,
            wish.epoch,
            "amount",
            section.name,
            section.amount_text(old),
            section.amount_text(want),
            wish.reason,
        )
        if want > old:
            entry.grown_at = now
        else:
            entry.shrunk_at = now
        entry.changed_by, entry.changed_at = policy, now
        self._set(entry, (section.name, peer), want)
        if wish.purpose == "safety":  # what happens to a peer is no oscillation
            return [decision]
        return [decision, *self._turn(section, entry, peer, policy, want > old, now)]

    def _turn(
        self, section: Resource, entry: AmountEntry, peer: str, policy: str, up: bool, now: float
    ) -> list[Decision]:
        if not (names := oscillating(entry, policy, up, now)):
            return []
        reason = (
            f"oscillates: {TURNS_MAX} turns within {TURN_SECONDS:g} s by {' and '.join(names)}; widen the gap between "
            f"their conditions. For {PAUSE:g} s it is only raised"
        )
        text = section.amount_text(entry.desired or 0.0)
        return [Decision(now, peer, " ".join(names), 0, "oscillation", section.name, text, text, reason)]

    def _set(self, entry: AmountEntry, key: Key, amount: float) -> None:
        entry.desired = amount
        self._unsaved.add(key)
        self._changes.setdefault(key[0], {})[key[1]] = amount

    def _touch(self, key: Key) -> None:
        self._dirty.add(key)
        self._unsaved.add(key)

    def _wake(self, key: Key, entry: AmountEntry, at: float) -> None:
        if at < entry.due:
            entry.due = at
            heapq.heappush(self._due, (at, key))

    def _is_held(self, resource: str, peer: str) -> bool:
        return bool(self.held) and not self.held.isdisjoint(("*", resource, peer))

    # -- for the back ends, status and the state file -----------------------

    def take_changes(self) -> dict[str, dict[str, float]]:
        """By resource and peer the desired amounts that changed since the last call."""
        changes, self._changes = self._changes, {}
        return changes

    def take_renewed(self) -> set[Key]:
        """Those whose wish with a timeout was renewed since the last call."""
        renewed, self._renewed = self._renewed, set()
        return renewed

    def entry(self, resource: str, peer: str) -> AmountEntry | None:
        return self._entries.get(resource, {}).get(peer)

    def entries(self) -> Iterator[tuple[Key, AmountEntry]]:
        for resource, entries in self._entries.items():
            for peer, entry in entries.items():
                yield (resource, peer), entry

    def take_unsaved(self) -> dict[Key, AmountEntry]:
        """The entries that changed since the last call."""
        keys, self._unsaved = self._unsaved, set()
        return {key: self._entries[key[0]][key[1]] for key in keys}

    def adopt(self, kept: Iterable[tuple[Key, AmountEntry]], policies: Collection[str], now: float) -> None:
        """Take over what was known before a reload or a restart; of wishes those of `policies`, which still stand."""
        for key, old in kept:
            entry = self.entry(*key)
            if entry is None or old.desired is None:
                continue
            section = self.resources[key[0]]
            entry.observed, entry.timed, entry.silent = old.observed, old.timed, old.silent
            entry.grown_at = min(old.grown_at, now)  # the clock may have been set back
            entry.shrunk_at = min(old.shrunk_at, now)
            entry.wishes = {policy: wish for policy, wish in old.wishes.items() if policy in policies}
            self._begin(section, key[1], entry, old.desired)
            self._dirty.add(key)

    def hold(self, names: Iterable[str]) -> None:
        """Change nothing of these resources and peers ("*": of all) from now on; what is not named any more goes on."""
        self.held = frozenset(names)
        self._dirty.update(key for key, _ in self.entries())
