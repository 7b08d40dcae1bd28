"""The table of actions: one line a kind; everything pure about a kind is in its file."""

from __future__ import annotations

from typing import Any

from scentd.config.schema import Table, kind_of
from scentd.core.allocate.actions.action import ActionKind
from scentd.core.allocate.actions.amount import AmountKind
from scentd.core.allocate.actions.command import CommandKind
from scentd.core.allocate.actions.quarantine import QuarantineKind
from scentd.core.allocate.actions.webhook import WebhookKind

ACTIONS: dict[str, ActionKind[Any]] = {
    "quarantine": QuarantineKind(),
    "amount": AmountKind(),
    "command": CommandKind(),
    "webhook": WebhookKind(),
}


def action_of(do: Table) -> ActionKind[Any]:
    """The kind of a policy's action."""
    return ACTIONS[kind_of(do)]
