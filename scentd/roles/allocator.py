"""The allocator: takes Views, decides, logs decisions, and says what this host's actuators and resources should be.

Policies are looked at when something changed: a view, or a time that has come. The desired amounts go to whoever has
the resource (roles/resources.py); what that host observes and applies comes back by the bus.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from msgspec.structs import replace

from scentd.act.actuator import Tally
from scentd.act.oneshot import Oneshots
from scentd.act.reconcile import CLOSE_TIMEOUT, Reconciler
from scentd.bus.local import LocalBus
from scentd.config.policy import Policy
from scentd.config.provide import elsewhere, offered
from scentd.config.schema import kind_of
from scentd.config.sections import Config
from scentd.core.allocate.actions import ACTIONS
from scentd.core.allocate.amounts import Amounts
from scentd.core.allocate.decide import Assessment, Decider, Standing
from scentd.core.allocate.effects import Effects
from scentd.core.allocate.plan import Plan, plan, release, release_where, reload
from scentd.core.allocate.refuse import HandRelease, Refuser, selection
from scentd.core.leaps import is_leapt
from scentd.core.shared import shared
from scentd.errors import HostError
from scentd.model import (
    SCHEMA,
    Applied,
    Barred,
    Decision,
    Desired,
    DesiredAmounts,
    Effect,
    Firing,
    Notice,
    Observed,
    Oneshot,
    Sender,
    View,
    Views,
)
from scentd.prefix import prefixes
from scentd.roles.allocation_keeper import AllocationKeeper
from scentd.roles.delays import Delays
from scentd.state.history import Account, History
from scentd.wire import bloom

log = logging.getLogger(__name__)


class AllocatorRole:
    """Publishes a Notice for every decision, Barred and DesiredAmounts when they change."""

    def __init__(self, config: Config, bus: LocalBus) -> None:
        self.policy_errors = 0
        self.delays = Delays()
        self.decisions: dict[str, int] = {}  # by action
        self.desired = Desired()
        # Whether this allocator decides; otherwise another one of its name does (roles/fleet/allocating.py).
        self.gate: Callable[[], bool] = lambda: True
        self._config = config
        self._bus = bus
        self.amounts = new_amounts(config)
        self._decider = Decider(policies_of(config), self.amounts)
        self._effects = Effects()
        self._refuser = Refuser(prefixes(config.allocator.protected))
        self._views: dict[str, View] = {}
        self._barred: dict[Sender, float] = {}
        self._history = open_history(config)
        self._keeper = AllocationKeeper(config.daemon.state_dir)
        self._tally = Tally()
        self._reconciler: Reconciler | None = None
        self._oneshots: Oneshots | None = None
        self._pending_firings: list[Firing] = []
        self._asking: dict[tuple[str, str], Firing] = {}  # by resource and peer, until it is there
        # Guards desired, delays and _pending_firings: the actuators' threads report results.
        self._lock = threading.Lock()
        bus.subscribe(Views, self._on_views)
        bus.subscribe(Observed, self._on_observed)
        bus.subscribe(Applied, self._on_applied)

    def start(self) -> dict[str, dict[str, float]]:
        """Begin with what an earlier run has decided. Returns its amounts, by resource and peer."""
        names = {p.name for p in self._config.policy}
        self.desired = self._keeper.load(self._decider, self.amounts, names, time.time())
        # Another allocator may have decided meanwhile: what is on other hosts, these hosts tell.
        self.amounts.begin_anew(elsewhere(self._config))
        self._open_actuators()
        return self.amounts.take_changes()

    def reload(self, config: Config) -> None:
        """Take over other policies; policies that do not change keep their state."""
        unchanged = {p.name for p in policies_of(config) if p in policies_of(self._config)}
        amounts = new_amounts(config)
        self._decider.reload(policies_of(config), amounts)
        amounts.adopt(self.amounts.entries(), unchanged, time.time())
        amounts.hold(self.amounts.held)
        same = (config.policy, config.peer) == (self._config.policy, self._config.peer)
        before, self._config, self.amounts = self._config, config, amounts
        if history_settings(before) != history_settings(config):
            self._history.close()
            self._history = open_history(config)
        if not same:
            self._close_actuators(remove=False)
            self._open_actuators()
        self._refuser.reload(prefixes(config.allocator.protected))
        self._carry_out(release_where(self.desired, lambda s, _: self._refuser.protects(s), time.time()), ())
        self._look_at(self._views.values(), time.time())

    def release(self, name: str, seconds: float) -> dict[str, object]:
        """Release the quarantines of a peer, or of the senders within a prefix, for so long. Raises HostError."""
        now = time.time()
        selected = selection(name, [p.name for p in self._config.peer])
        why = f"by hand; the policy does not renew it for {seconds:g} s"
        result = release_where(self.desired, lambda s, peer: why if selected.has(s, peer) else "", now)
        if not result.decisions:
            raise HostError(f"{name}: no quarantine of it; `scentd status` lists what is quarantined")
        pairs = dict.fromkeys((d.policy, d.peer) for d in result.decisions)
        self._refuser.release(HandRelease(*pair, selected.prefix, now + seconds) for pair in pairs)
        self._carry_out(result, ())
        return {"schema": SCHEMA, "released": [d.target for d in result.decisions], "until": now + seconds}

    def close(self, remove: bool) -> None:
        """Close the actuators and the log. With `remove` the actuators remove their changes from the host."""
        self._close_actuators(remove)
        self._keeper.save(self._decider, self.amounts, self.desired)
        self._keeper.close()
        self._history.close()

    def take_over(self) -> None:
        """Decide from now on, after another allocator has: all policies look at all peers."""
        self._decider.ask_again()
        for (_, peer), entry in self.amounts.entries():
            if entry.changed_by:
                view = self._views.get(peer)
                epoch = view.profile.epoch if view is not None and view.received_at <= entry.changed_at else None
                self._decider.fired_elsewhere(entry.changed_by, peer, entry.changed_at, epoch)
        self._look_at(self._views.values(), time.time())

    def tick(self) -> None:
        """Once a second: what has become due; write what the disk has refused."""
        now = time.time()
        due = [self._views[peer] for peer in self._decider.due(now) if peer in self._views]
        self._look_at(due, now)
        self._carry_out(release(self.desired, now), ())
        self._look_for_silence(now)
        self._settle(now, share_all=True)
        self._keeper.save(self._decider, self.amounts, self.desired)

    def _look_for_silence(self, now: float) -> None:
        """Bring the amounts of peers that have long been silent to their fallbacks."""
        patience = [r.fallback_after for r in self._config.resource if r.fallback is not None]
        if patience and self.gate():
            for peer, view in self._views.items():
                if now - view.received_at > min(patience):
                    self._say(self.amounts.silent(peer, view.received_at, now))

    def hold(self, names: Collection[str]) -> frozenset[str]:
        """Hold these resources and peers ("*": everything), besides those that are held. Raises HostError."""
        known = {"*", *(r.name for r in self._config.resource), *(p.name for p in self._config.peer)}
        if unknown := sorted(set(names) - known):
            raise HostError(
                f"{', '.join(unknown)}: no resource or peer has this name; known: {', '.join(sorted(known))}"
            )
        self.amounts.hold({*self.amounts.held, *names})
        return self.amounts.held

    def resume(self, names: Collection[str]) -> frozenset[str]:
        """Go on with these, or with everything."""
        self.amounts.hold(self.amounts.held - set(names) if names else ())
        self._settle(time.time())
        return self.amounts.held

    # -- decisions ---------------------------------------------------------

    def _on_views(self, views: Views) -> None:
        now = time.time()
        newer = [v for v in views.views if not self._is_outdated(v)]
        new = [v for v in newer if v.peer not in self._views or v.profile is not self._views[v.peer].profile]
        self._history.record(new, now)
        self._views |= {v.peer: v for v in newer}
        self._look_at(newer, now)
        for view in newer:
            self._tell_effects(self._effects.judge(view, now))

    def _is_outdated(self, view: View) -> bool:
        newest = self._views.get(view.peer)
        if newest is None or is_leapt(newest.profile.epoch, time.time(), self._config.verify.max_future):
            return False
        return view.profile.epoch < newest.profile.epoch

    def _look_at(self, views: Iterable[View], now: float) -> None:
        """Apply the policies to these views."""
        try:
            only_here = not self.gate()
            found = (firing for view in views for firing in self._decider.decide(view, now, only_here))
            firings, refused = self._refuser.sift(found)
            self._say(refused)
            self._carry_out(plan(self.desired, firings), firings)
            for firing in firings:
                if firing.asked is not None:
                    self._effects.decided(firing.policy.do.asked_resource(), firing)
                    self._asking[firing.policy.do.asked_resource(), firing.peer] = firing
            self._settle(now)
        except Exception:  # a policy must never stop the packet path
            self.policy_errors += 1
            log.exception("the policies failed on a round; the next one tries again")

    def _settle(self, now: float, share_all: bool = False) -> None:
        if not self.gate():
            return
        self._say(self.amounts.settle(now, share_all))
        if changes := self.amounts.take_changes():
            self._bus.publish(DesiredAmounts(changes))

    def _carry_out(self, result: Plan, firings: Sequence[Firing], force: bool = False) -> None:
        changed = force or result.desired is not self.desired
        with self._lock:
            self.desired = result.desired
            self.delays.record_decided(firings)
            self._pending_firings += [f for f in firings if is_kept_on_host(f) and changed]
        self._say(result.decisions)
        if changed:
            self._bar()
            if self._reconciler is not None:
                self._reconciler.submit(result.desired)
        if self._oneshots is not None:
            for oneshot in result.oneshots:
                self._oneshots.add(oneshot)

    def _bar(self) -> None:
        """Tell the packet path whose packets it may drop."""
        barred = {
            p: until for kind, a in ACTIONS.items() for p, until in a.barred_senders(self.desired.of(kind)).items()
        }
        if barred != self._barred:
            self._barred = barred
            self._bus.publish(Barred(barred))

    def _say(self, decisions: Sequence[Decision]) -> None:
        """Write decisions down, and tell people."""
        if not decisions:
            return
        self._history.append(decisions)
        for d in decisions:
            self.decisions[d.action] = self.decisions.get(d.action, 0) + 1
            change = f"{d.before or '-'} -> {d.after or '-'}"
            log.info("%s: %s %s: %s %s (%s)", d.peer, d.policy or "-", d.action, d.target, change, d.reason)
            self._bus.publish(Notice("decision", asdict(d)))

    # -- what became of them -----------------------------------------------

    def _on_observed(self, observed: Observed) -> None:
        now, said = time.time(), (observed.resource, observed.amounts)
        if not self.gate():
            self.amounts.follow(*said, observed.wanted)
            return
        self._say(self.amounts.observe(*said, observed.drifted, now, observed.wanted))
        self._settle(now)

    def _on_applied(self, applied: Applied) -> None:
        view = self._views.get(applied.peer)
        if not applied.failure and view is not None:
            self._effects.applied(applied.resource, applied.peer, view.profile.epoch)
        firing = self._asking.pop((applied.resource, applied.peer), None)
        if firing is not None and not applied.failure and applied.resource in self.amounts.resources:
            with self._lock:
                kind = kind_of(self.amounts.resources[applied.resource])
                self.delays.record_given(kind, firing, time.time())
        self._history.applied(applied, time.time())
        self._bus.publish(Notice("applied", asdict(applied)))

    def _tell_effects(self, effects: Sequence[Effect]) -> None:
        self._history.effects(effects)
        for effect in effects:
            self._bus.publish(Notice("effect", asdict(effect)))

    def _on_kept(self, desired: Desired) -> None:
        """The host has this desired state. Called on the reconciler's thread."""
        with self._lock:
            if desired is self.desired:
                firings, self._pending_firings = self._pending_firings, []
                self.delays.record_applied(firings, time.time())

    def _on_done(self, oneshot: Oneshot) -> None:
        """A oneshot has been carried out. Called on a thread of the oneshots."""
        with self._lock:
            self.delays.record_applied([oneshot.firing], time.time())

    def _open_actuators(self) -> None:
        self._tally = Tally()
        self._reconciler = Reconciler(self._config, self._tally, self._on_kept)
        self._oneshots = Oneshots(self._tally, self._on_done)
        peers = shared(self._config.peer)
        self._decider.retain(peers)
        self._views = {peer: view for peer, view in self._views.items() if peer in peers}
        self._carry_out(reload(self.desired, self._config.policy, peers, time.time()), (), force=True)

    def _close_actuators(self, remove: bool) -> None:
        if self._oneshots is not None:
            self._oneshots.close(CLOSE_TIMEOUT)
        if self._reconciler is not None:
            self._reconciler.close(remove)

    # -- for the status document --------------------------------------------

    def assess(self, view: View) -> list[Assessment]:
        """How each policy stands for a peer."""
        return self._decider.explain(view, time.time())

    def account(self, peer: str, limit: int) -> Account:
        """What was decided about a peer and what became of it, newest first; it may read the disk."""
        return self._history.account(peer, limit)

    def hurting(self, peer: str) -> list[str]:
        """The regions of resources to which the peer's newest profile says that latency is high. From any thread."""
        view = self._views.get(peer)
        if view is None:
            return []
        regions = {region for resource in self._config.resource for region in resource.regions()}
        item = "region={};metric=latency;level=high"
        newest = view.profile
        return sorted(r for r in regions if bloom.contains(newest.bloom, newest.epoch, item.format(r)))

    def releases(self) -> list[HandRelease]:
        """What operators have released, as long as it holds."""
        return self._refuser.releases(time.time())

    def standings(self) -> list[Standing]:
        return self._decider.standings()

    def why_not(self, kind: str, resource: str) -> str:
        """Why the host does not have what an action wants."""
        return self._reconciler.why_not(kind, resource) if self._reconciler is not None else ""

    def counters(self) -> Mapping[str, int]:
        return {**self._tally.all(), **self._history.counters(), "allocation_file_failures": self._keeper.failures}


def history_settings(config: Config) -> tuple[str, float, float]:
    """Where the history is, its size in bytes and its age in seconds."""
    own = config.allocator
    return str(Path(config.daemon.state_dir) / own.history), own.history_size, own.history_age


def open_history(config: Config) -> History:
    return History(*history_settings(config))


def new_amounts(config: Config) -> Amounts:
    resources = [r for r in config.resource if r not in offered(config)]
    amounts = Amounts(resources, config.budget, [p.name for p in config.peer])
    amounts.purposes = {policy.name: policy.purpose for policy in config.policy}
    return amounts


def policies_of(config: Config) -> list[Policy]:
    """All of them on dry run, if [allocator] says so."""
    return [replace(p, dry_run=True) for p in config.policy] if config.allocator.dry_run else list(config.policy)


def is_kept_on_host(firing: Firing) -> bool:
    """Whether the reconciler carries it out."""
    return ACTIONS[kind_of(firing.policy.do)].level_triggered and firing.asked is None
