"""Command: runs a program of the operator's once, with the decision as JSON on its standard input."""

from __future__ import annotations

import shlex
from typing import Annotated

from msgspec import Meta

from scentd.config.policy import Action
from scentd.config.units import Seconds
from scentd.core.allocate.actions.action import EdgeKind


class CommandAction(Action, tag_field="kind", tag="command"):
    """Run a program (no shell) with the decision as JSON on its standard input."""

    argv: Annotated[list[str], Meta(min_length=1)]
    timeout: Seconds = 10.0
    user: str = "nobody"


class CommandKind(EdgeKind[CommandAction]):
    section = CommandAction

    def text(self, do: CommandAction) -> str:
        return shlex.join(do.argv)
