"""A source, an action with its actuator and a view that exist only in this file, each with one line in its table.

As a program it is scentd with them: `python toys.py run --config FILE`.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from scentd import cli
from scentd.act import ACTUATORS
from scentd.act.actuator import Actuator, ActuatorKind
from scentd.collect import SOURCES
from scentd.collect.source import Reader, Setting, SourceKind
from scentd.config.policy import Action, Policy
from scentd.config.schema import kind_of
from scentd.config.sections import Config, Source
from scentd.control.status import Status
from scentd.core.allocate.actions import ACTIONS
from scentd.core.allocate.actions.action import ActionKind, Resources, ResourceText, make_decision
from scentd.model import Decision, Firing, Oneshot, Sample
from scentd.show import VIEWS

# -- a source: what a file says ------------------------------------------------


class LineSource(Source, tag_field="kind", tag="line"):
    path: str
    metric: str = "cpu"


class LineReader(Reader):
    name = "line"

    def __init__(self, source: LineSource, _: Setting) -> None:
        self._source = source

    def read(self, now: float) -> list[Sample]:
        return [Sample(self._source.metric, float(Path(self._source.path).read_text()), now, role="toy")]


# -- an action: a file that names the peers for which a policy holds -----------


class FlagAction(Action, tag_field="kind", tag="flag"):
    path: str


class FlagKind(ActionKind[FlagAction]):
    section = FlagAction
    level_triggered = True

    def fold(self, do: FlagAction, resources: Resources, firing: Firing) -> tuple[list[Decision], list[Oneshot]]:
        before = resources.get(do.path, frozenset())
        if firing.peer in before:
            return [], []
        resources[do.path] = before | {firing.peer}
        return [make_decision(firing, self.kind, do.path, " ".join(before), " ".join(sorted(resources[do.path])))], []

    def reload(
        self, resources: Mapping[Any, Any], policies: Sequence[Policy], peers: Collection[str], now: float
    ) -> tuple[Resources, list[Decision]]:
        paths = {p.do.path for p in policies if isinstance(p.do, FlagAction)}
        return {path: flagged & set(peers) for path, flagged in resources.items() if path in paths}, []

    def describe(self, resources: Mapping[Any, Any]) -> list[ResourceText]:
        return [ResourceText(path, " ".join(sorted(flagged)), "flagged") for path, flagged in resources.items()]


class FlagActuator:
    name = "flag"
    resource = ""

    def __init__(self, paths: Collection[str]) -> None:
        self._paths = paths

    def apply(self, resources: Mapping[Any, Any], now: float) -> int:
        changes = 0
        for name in self._paths:
            path, text = Path(name), "\n".join(sorted(resources.get(name, ())))
            if not path.exists() or path.read_text() != text:
                path.write_text(text)
                changes += 1
        return changes

    def observe(self) -> Mapping[str, int]:
        return {"files": len(self._paths)}

    def remove(self) -> None:
        for name in self._paths:
            Path(name).unlink(missing_ok=True)

    def close(self) -> None:
        pass


class FlagActuators(ActuatorKind):
    def actuators(self, config: Config) -> list[Actuator]:
        paths = {p.do.path for p in config.policy if kind_of(p.do) == "flag"}  # type: ignore[attr-defined]
        return [FlagActuator(paths)] if paths else []


# -- a view --------------------------------------------------------------------


def roll_call(status: Status) -> str:
    return "\n".join(f"{p.name}: {'here' if p.profile else 'missing'}" for p in status.peers)


def enter() -> None:
    """The one line of each in its table."""
    SOURCES["line"] = SourceKind(LineSource, LineReader)
    ACTIONS["flag"] = FlagKind()
    ACTUATORS["flag"] = FlagActuators()
    VIEWS["roll-call"] = roll_call


if __name__ == "__main__":
    enter()
    sys.exit(cli.main())
