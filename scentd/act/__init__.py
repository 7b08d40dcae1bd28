"""The table of actuators, which change the host for policies: one line a kind of action."""

from __future__ import annotations

from scentd.act.actuator import ActuatorKind
from scentd.act.bandwidth import BandwidthActuators
from scentd.act.command import CommandActuator
from scentd.act.quarantine import QuarantineActuators
from scentd.act.webhook import WebhookActuator
from scentd.config.sections import Config

ACTUATORS: dict[str, ActuatorKind] = {
    "quarantine": QuarantineActuators(),
    "bandwidth": BandwidthActuators(),
    "command": CommandActuator(),
    "webhook": WebhookActuator(),
}


def notes(config: Config) -> list[str]:
    """What policies ask of this host in vain. Raises HostError."""
    return [note for kind in ACTUATORS.values() for note in kind.notes(config)]


def cleanup() -> list[str]:
    """Remove everything that actuators of this or an earlier run made; return its names. Raises HostError."""
    return [removed for kind in ACTUATORS.values() for removed in kind.remove_all()]
