"""Wall clocks of daemons and workers that are wrong. A machine has one clock, which no test may set."""

from __future__ import annotations

import os
import time

from hosts import ROOT, Node

# Python imports this module at its start, wherever it stands on the path.
SITECUSTOMIZE = """
import os
import time

_FILE = os.path.join(os.path.dirname(__file__), "seconds")
_time, _time_ns = time.time, time.time_ns


def _wrong() -> int:
    with open(_FILE) as file:
        return int(file.read())


time.time = lambda: _time() + _wrong()
time.time_ns = lambda: _time_ns() + _wrong() * 1_000_000_000
"""


class WallClock:
    """The clock of one node's processes, from its next start on."""

    def __init__(self, node: Node) -> None:
        directory = node.directory / "clock"
        directory.mkdir()
        (directory / "sitecustomize.py").write_text(SITECUSTOMIZE)
        self._file = directory / "seconds"
        self.set(0)
        node.environment["PYTHONPATH"] = f"{directory}{os.pathsep}{ROOT}"

    def set(self, seconds: float) -> None:
        """Be wrong by so much from now on. In one step: nobody reads half a number."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:.0f}")
        os.replace(new, self._file)

    def set_to(self, when: float) -> None:
        """A Unix time."""
        self.set(when - time.time())
