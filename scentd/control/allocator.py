"""The running half of the allocator: views in, decisions logged, actuators told."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from scentd import config as schema
from scentd import plan
from scentd.act.decision_log import DecisionLog
from scentd.act.runner import Runner
from scentd.decide import Decider
from scentd.model import Decision, View

log = logging.getLogger(__name__)


class Allocator:
    """Applies the policies to the views.

    `report(event, fields)` is told of every decision, `quarantine` of the prefixes in quarantine with their ends, so
    that the packet path may drop them before nftables does.
    """

    def __init__(
        self,
        config: schema.Config,
        report: Callable[[str, dict], None],
        quarantine: Callable[[dict[str, float]], None],
    ) -> None:
        self._config = config
        self._report = report
        self._quarantine = quarantine
        self._quarantined: dict[str, float] = {}
        self._decider = Decider(config.policy)
        self._desired = plan.Desired()
        self._log = DecisionLog(config.daemon.decision_log)
        self._runner: Runner | None = None
        self.decisions: dict[str, int] = {}

    def start(self) -> None:
        self._runner = Runner(self._config)
        self._restart_plan()

    def reload(self, config: schema.Config) -> None:
        """Take over other policies; what both have in common keeps its state."""
        self._decider.reload(config.policy)
        same = (config.policy, config.peer) == (self._config.policy, self._config.peer)
        self._config = config
        self._log.reopen()
        if not same:
            if self._runner is not None:
                self._runner.close(remove=False)
            self._runner = Runner(config)
            self._restart_plan()

    def close(self, remove: bool) -> None:
        """`remove`: take away what the actuators have made."""
        if self._runner is not None:
            self._runner.close(remove=remove)
        self._log.close()

    def decide(self, views: list[View], now: float) -> None:
        """One round over these views; quarantines that have served their time are released."""
        firings = [f for view in views for f in self._decider.decide(view, now)]
        self._settle(plan.plan(self._desired, firings, now))

    def tick(self) -> None:
        """Once a second: what the disk did not take before may go now."""
        self._log.flush()

    def explain(self, network: str, seen: View | None, limit: int) -> dict:
        """How each policy stands for a network and what was decided for it, newest first."""
        stands = self._decider.explain(seen, time.time()) if seen is not None else []
        return {
            "network": network,
            "policies": [
                {"policy": a.policy, "outcome": a.outcome, "detail": a.detail, "reason": a.reason} for a in stands
            ],
            "decisions": [as_dict(d) for d in self._log.explain(network, limit)],
        }

    def describe(self) -> dict:
        return {
            "quarantined": {str(p): c.until for p, c in self._desired.quarantined.items()},
            "rates_bit_per_second": {f"{n}@{i}": rate for (n, i), rate in self._desired.rates.items()},
            "decisions": dict(self.decisions),
        }

    def counters(self) -> Mapping[str, int]:
        return {**(self._runner.counters() if self._runner else {}), **self._log.counters()}

    def _restart_plan(self) -> None:
        networks = [p.name for p in self._config.peer]
        self._decider.retain(networks)
        self._settle(plan.reload(self._desired, self._config.policy, networks, time.time()), force=True)

    def _settle(self, made: plan.Plan, force: bool = False) -> None:
        changed = force or made.desired != self._desired
        self._desired = made.desired
        self._log.append(made.decisions)
        for decision in made.decisions:
            self.decisions[decision.action] = self.decisions.get(decision.action, 0) + 1
            log.info(
                "%s: %s %s: %s %s -> %s (%s)",
                decision.network,
                decision.policy or "-",
                decision.action,
                decision.target,
                decision.before or "-",
                decision.after or "-",
                decision.reason,
            )
            self._report("decision", as_dict(decision))
        quarantined = {str(p): c.until for p, c in made.desired.quarantined.items()}
        if quarantined != self._quarantined:
            self._quarantined = quarantined
            self._quarantine(quarantined)
        if self._runner is not None and (changed or made.errands):
            self._runner.submit(made.desired, made.errands)


def as_dict(decision: Decision) -> dict:
    return {name: getattr(decision, name) for name in decision.__slots__}
