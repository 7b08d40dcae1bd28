"""The table of actuators, which change the host for policies: one line a kind of action."""

from __future__ import annotations

from scentd.act.actuator import ActuatorKind
from scentd.act.command import CommandActuator
from scentd.act.quarantine import QuarantineActuators
from scentd.act.resources import RESOURCES
from scentd.act.webhook import WebhookActuator
from scentd.config.provide import own
from scentd.config.schema import kind_of
from scentd.config.sections import Config

ACTUATORS: dict[str, ActuatorKind] = {
    "quarantine": QuarantineActuators(),
    "amount": ActuatorKind(),  # providers.py carries it out, with a back end for each resource
    "command": CommandActuator(),
    "webhook": WebhookActuator(),
}


def notes(config: Config) -> list[str]:
    """What policies ask of this host in vain. Raises HostError."""
    notes = [note for kind in ACTUATORS.values() for note in kind.notes(config)]
    for kind, backend in RESOURCES.items():
        resources = [r for r in own(config) if kind_of(r) == kind]
        notes += backend.notes(resources) if resources else []
    return notes


def cleanup() -> list[str]:
    """Remove everything that actuators of this or an earlier run made; return its names. Raises HostError."""
    removed = [name for kind in ACTUATORS.values() for name in kind.remove_all()]
    return removed + [name for backend in RESOURCES.values() for name in backend.remove_all()]
