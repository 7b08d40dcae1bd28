"""The allocator: takes Views, logs decisions, gives the desired state and oneshots to this host's actuators."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from scentd.act.actuator import Tally
from scentd.act.decision_log import DecisionLog
from scentd.act.oneshot import Oneshots
from scentd.act.reconcile import CLOSE_TIMEOUT, Reconciler
from scentd.bus.local import LocalBus
from scentd.config.schema import kind_of
from scentd.config.sections import Config
from scentd.control.status import (
    AllocationStatus,
    Explanation,
    PolicyAssessment,
    PolicyStatus,
    ResourceStatus,
    count_names,
    limit_list,
)
from scentd.core.allocate.actions import ACTIONS
from scentd.core.allocate.decide import Decider
from scentd.core.allocate.plan import Plan, plan, reload
from scentd.core.shared import shared
from scentd.model import Barred, Decision, Desired, Firing, Notice, Oneshot, Sender, View, Views
from scentd.roles.delays import Delays

log = logging.getLogger(__name__)


class AllocatorRole:
    """Applies the policies to Views. Publishes a Notice for every decision, and Barred when it changes."""

    def __init__(self, config: Config, bus: LocalBus) -> None:
        self.policy_errors = 0
        self._config = config
        self._bus = bus
        self._decider = Decider(config.policy)
        self._views: dict[str, View] = {}
        self._desired = Desired()
        self._barred: dict[Sender, float] = {}
        self._log = DecisionLog(config.daemon.decision_log)
        self._tally = Tally()
        self._reconciler: Reconciler | None = None
        self._oneshots: Oneshots | None = None
        self._decisions: dict[str, int] = {}
        self._delays = Delays()
        self._pending_firings: list[Firing] = []
        # Guards _desired, _delays and _pending_firings: the actuators' threads report results.
        self._lock = threading.Lock()
        bus.subscribe(Views, self._on_views)

    def start(self) -> None:
        self._open_actuators()

    def reload(self, config: Config) -> None:
        """Take over other policies; policies that do not change keep their state."""
        self._decider.reload(config.policy)
        same = (config.policy, config.peer) == (self._config.policy, self._config.peer)
        self._config = config
        self._log.reopen(config.daemon.decision_log)
        if not same:
            self._close_actuators(remove=False)
            self._open_actuators()

    def close(self, remove: bool) -> None:
        """Close the actuators and the log. With `remove` the actuators remove their changes from the host."""
        self._close_actuators(remove)
        self._log.close()

    def tick(self) -> None:
        """Once a second: try again to write decisions that the disk has refused."""
        self._log.flush()

    def _open_actuators(self) -> None:
        self._tally = Tally()
        self._reconciler = Reconciler(self._config, self._tally, self._on_applied)
        self._oneshots = Oneshots(self._tally, self._on_done)
        peers = shared(self._config.peer)
        self._decider.retain(peers)
        self._views = {peer: view for peer, view in self._views.items() if peer in peers}
        self._carry_out(reload(self._desired, self._config.policy, peers, time.time()), (), force=True)

    def _close_actuators(self, remove: bool) -> None:
        if self._oneshots is not None:
            self._oneshots.close(CLOSE_TIMEOUT)
        if self._reconciler is not None:
            self._reconciler.close(remove)

    # -- decisions ---------------------------------------------------------

    def _on_views(self, views: Views) -> None:
        """Apply the policies to these views, except outdated ones; release the resources whose time is over."""
        now = time.time()
        newer = [v for v in views.views if not self._is_outdated(v)]
        self._views |= {v.peer: v for v in newer}
        try:
            firings = [f for view in newer for f in self._decider.decide(view, now)]
            self._carry_out(plan(self._desired, firings, now), firings)
        except Exception:  # a policy must never stop the packet path
            self.policy_errors += 1
            log.exception("the policies failed on a round; the next one tries again")

    def _is_outdated(self, view: View) -> bool:
        newest = self._views.get(view.peer)
        return newest is not None and view.profile.epoch < newest.profile.epoch

    def _carry_out(self, result: Plan, firings: Sequence[Firing], force: bool = False) -> None:
        changed = force or result.desired != self._desired
        with self._lock:
            if changed:
                self._desired = result.desired
            self._delays.record_decided(firings)
            self._pending_firings += [f for f in firings if ACTIONS[kind_of(f.policy.do)].level_triggered and changed]
        self._log.append(result.decisions)
        for decision in result.decisions:
            self._publish_decision(decision)
        barred = {
            p: until for kind, a in ACTIONS.items() for p, until in a.barred_senders(result.desired.of(kind)).items()
        }
        if barred != self._barred:
            self._barred = barred
            self._bus.publish(Barred(barred))
        if self._reconciler is not None and changed:
            self._reconciler.submit(result.desired)
        if self._oneshots is not None:
            for oneshot in result.oneshots:
                self._oneshots.add(oneshot)

    def _publish_decision(self, decision: Decision) -> None:
        self._decisions[decision.action] = self._decisions.get(decision.action, 0) + 1
        log.info(
            "%s: %s %s: %s %s -> %s (%s)",
            decision.peer,
            decision.policy or "-",
            decision.action,
            decision.target,
            decision.before or "-",
            decision.after or "-",
            decision.reason,
        )
        self._bus.publish(Notice("decision", asdict(decision)))

    def _on_applied(self, desired: Desired) -> None:
        """The host has this desired state. Called on the reconciler's thread."""
        with self._lock:
            if desired is self._desired:
                firings, self._pending_firings = self._pending_firings, []
                self._delays.record_applied(firings, time.time())

    def _on_done(self, oneshot: Oneshot) -> None:
        """A oneshot has been carried out. Called on a thread of the oneshots."""
        with self._lock:
            self._delays.record_applied([oneshot.firing], time.time())

    # -- status ------------------------------------------------------------

    def explain(self, peer: str, view: View | None, limit: int) -> Explanation:
        """The outcome of each policy for a peer, and the decisions about it, newest first."""
        assessments = self._decider.explain(view, time.time()) if view is not None else []
        return Explanation(
            peer=peer,
            policies=[
                PolicyAssessment(policy=a.policy, outcome=a.outcome, detail=a.detail, reason=a.reason)
                for a in assessments
            ],
            decisions=self._log.explain(peer, limit),
        )

    def status(self, limit: int) -> tuple[AllocationStatus, dict[str, int], int]:
        """Return the document's part, the number of resources that it omits by kind, and of policies that it omits."""
        all_resources = [
            ResourceStatus(
                kind=kind,
                resource=t.resource,
                peer=t.peer,
                text=t.text,
                amount=t.amount,
                unit=t.unit,
                until=t.until,
                why_not=self._reconciler.why_not(kind, t.resource) if self._reconciler is not None else "",
            )
            for kind, action in ACTIONS.items()
            for t in action.describe(self._desired.of(kind))
        ]
        resources, rest = limit_list(all_resources, limit, lambda r: r.until or 0.0)
        standings, more = limit_list(self._decider.standings(), limit, lambda s: s.fired_at or 0.0)
        policies = [
            PolicyStatus(policy=s.policy, outcomes=s.outcomes, true_now=s.true_now, fired_at=s.fired_at)
            for s in standings
        ]
        with self._lock:
            delays = self._delays.status()
        status = AllocationStatus(
            resources=resources, decisions=dict(self._decisions), policies=policies, delays=delays
        )
        return status, count_names(r.kind for r in rest), len(more)

    def counters(self) -> Mapping[str, int]:
        return {**self._tally.all(), **self._log.counters()}
