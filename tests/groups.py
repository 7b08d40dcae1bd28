"""Throw-away control groups for the tests, in each hierarchy of this host, of v1 and of v2.

    with Group("hog") as group:
        group.limit("cpu", v1={"cpu.cfs_quota_us": 20_000}, v2={"cpu.max": "20000 100000"})
        group.start(sys.executable, "-c", "while True: pass")

Leaving the block ends what was started in it and removes it. Needs root.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from scentd.collect.cgroup import UNIFIED, mounted

CONTROLLERS = ("cpu", "cpuacct", "memory", "cpuset", UNIFIED)
SPIN = ("sh", "-c", "while :; do :; done")
SEND = """
import contextlib, socket, sys, time
address, size, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    while True:
        with contextlib.suppress(OSError):  # nobody listens there
            sock.sendto(bytes(size), (address, 9))
        time.sleep(pause)
"""
numbers = itertools.count()


def sending(address: str, size: int, pause: float) -> list[str]:
    """The argv of a process that sends datagrams of so many bytes for ever, with a pause in seconds after each."""
    return [sys.executable, "-c", SEND, address, str(size), str(pause)]


class Group:
    """`name` is what `cgroup` of a source says; `paths` are its directories by controller (UNIFIED: v2's)."""

    def __init__(self, tag: str, above: Group | None = None, name: str = "") -> None:
        self.name = name or (f"{above.name}/" if above else "") + f"sc{tag}{os.getpid()}-{next(numbers)}"
        hierarchies = mounted()
        self.versions = {c: h for c, h in hierarchies.items() if c in CONTROLLERS}
        self.paths = {c: h.top / self.name for c, h in self.versions.items()}
        self.started: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Group:
        for controller, path in self.paths.items():
            if controller == UNIFIED:
                enable(self.versions[controller].top, path)
            path.mkdir(exist_ok=True)  # cpu and cpuacct may be one hierarchy
        if "cpuset" in self.paths:  # v1 lets nothing in before both are set
            for file in ("cpuset.cpus", "cpuset.mems"):
                text = (self.paths["cpuset"].parent / file).read_text()
                (self.paths["cpuset"] / file).write_text(text)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.remove()

    def remove(self) -> None:
        for path in set(self.paths.values()):
            for _ in range(500):
                try:
                    path.rmdir()
                except FileNotFoundError:
                    break
                except OSError:  # the last process takes a moment to go
                    time.sleep(0.01)
                else:
                    break
            else:
                raise AssertionError(f"{path} is not empty: {(path / 'cgroup.procs').read_text()}")

    def limit(self, controller: str, v1: Mapping[str, object], v2: Mapping[str, object]) -> None:
        unified = controller not in self.paths
        directory = self.paths[UNIFIED if unified else controller]
        for file, value in (v2 if unified else v1).items():
            (directory / file).write_text(str(value))

    def start(self, *argv: str, prefix: tuple[str, ...] = (), **more: Any) -> subprocess.Popen[Any]:
        """Start a command in the group; `prefix` goes before it, such as `ip netns exec NAME`."""
        enter = "".join(f"echo $$ > {path}/cgroup.procs; " for path in set(self.paths.values()))
        process = subprocess.Popen(
            ["sh", "-ec", f'{enter} exec "$@"', "sh", *prefix, *argv], start_new_session=True, **more
        )
        self.started.append(process)
        return process


def enable(top: Path, path: Path) -> None:
    """On a host with v2 alone a group has the files of the controllers that those above it turn on."""
    for above in [*reversed(path.parents)]:
        if above == top or top in above.parents:
            available = (above / "cgroup.controllers").read_text().split()
            for controller in {"cpu", "memory", "cpuset"} & set(available):
                (above / "cgroup.subtree_control").write_text(f"+{controller}")
