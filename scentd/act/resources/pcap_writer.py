"""The daemon's side of the process that writes captures (pcap_ring.py): starts it, knows whether it runs, ends it."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from scentd.act.resources.backend import Refused
from scentd.errors import HostError
from scentd.system import python
from scentd.system.pcap_ring import READY, TAKEN

MODULE = "scentd.system.pcap_ring"
STEP = 0.1  # seconds
END_SECONDS = 3.0


class PcapWriter:
    """`arguments`: those of pcap_ring.main(). `pause` waits some seconds, or raises HostError if the daemon stops."""

    def __init__(self, name: str, arguments: Sequence[object], limit: float, pause: Callable[[float], None]) -> None:
        self._name, self._arguments, self._limit, self._pause = name, arguments, limit, pause
        self._process: subprocess.Popen[bytes] | None = None

    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Return when it gets copies; at once if it runs. Raises HostError, Refused."""
        if self.runs():
            return
        self.stop()
        self._process = subprocess.Popen(
            python.command(MODULE, *map(str, self._arguments)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=python.environment(os.environ),
            cwd=python.DIRECTORY,
        )
        try:
            said = self._first_line(self._process)
        except BaseException:
            self.stop()
            raise
        if said == READY:
            return
        self.stop()
        if said == TAKEN:
            raise Refused(
                f"resource {self._name}: another program or resource reads group {self._arguments[0]} of NFLOG: write "
                "another `group`; or scentd lacks CAP_NET_ADMIN"
            )
        raise HostError(f"resource {self._name}: the process that writes captures does not start: {said or 'it ended'}")

    def _first_line(self, process: subprocess.Popen[bytes]) -> str:
        assert process.stdout is not None
        deadline = time.monotonic() + self._limit
        while time.monotonic() < deadline:
            if select.select([process.stdout], [], [], STEP)[0]:
                return process.stdout.readline().decode(errors="replace").strip()
            self._pause(0.0)
        raise HostError(
            f"resource {self._name}: the process that writes captures did not begin within {self._limit:g} s; "
            "raise `start_timeout`, or make the host less busy"
        )

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
