"""Starts Python processes of ours, which run as root: no module comes from the directory where somebody started us."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

DIRECTORY = "/"  # where these processes run
PACKAGE = Path(__file__).resolve().parents[1]


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module. -P: its working directory is not on the path of modules."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment(base: Mapping[str, str]) -> dict[str, str]:
    """`base`, with a path on which the process finds this package, and whatever PYTHONPATH names for this process.

    An empty or relative entry of PYTHONPATH means the working directory, so it is left out.
    """
    named = base.get("PYTHONPATH", "").split(os.pathsep)
    path = [str(PACKAGE.parent), *(entry for entry in named if os.path.isabs(entry))]
    return {**base, "PYTHONPATH": os.pathsep.join(path)}
