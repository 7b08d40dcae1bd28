"""Two namespaces, one wire, and what the kernel says of the processes in them.

    near 10.203.0.0/24 fd00:203::/64 ---- veth, MTU 1500 ---- far 10.203.1.0/24 fd00:203:1::/64

Every address of a prefix is local to its end, neighbours are permanent: nothing but
the packets under test crosses the wire.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
MTU = 1500
NEAR = {4: "10.203.0.0/24", 6: "fd00:203::/64"}
FAR = {4: "10.203.1.0/24", 6: "fd00:203:1::/64"}
ADDRESS = {  # family -> end -> n-th address
    4: {"near": "10.203.0.{}", "far": "10.203.1.{}"},
    6: {"near": "fd00:203::{:x}", "far": "fd00:203:1::{:x}"},
}
HARDWARE = {"near": "02:00:00:00:00:01", "far": "02:00:00:00:00:02"}
INTERFACE = "wire"
PORT = 9000
PROGRAM = {4: "iptables", 6: "ip6tables"}


class LabError(Exception):
    """The benchmark cannot be run here: what is missing and the way out. Exit status 1."""


def call(argv: Sequence[str], stdin: str = "") -> str:
    try:
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False, timeout=30)
    except FileNotFoundError:
        raise LabError(f"{argv[0]}: not found; install iproute2 and iptables") from None
    if done.returncode:
        raise LabError(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout


class Lab:
    """Context manager; leaving it ends the processes it started and removes the namespaces."""

    def __init__(self) -> None:
        if os.geteuid():
            raise LabError("needs root: it makes network namespaces and binds queues")
        self.names = {end: f"scbench-{os.getpid()}-{end}" for end in HARDWARE}
        self.started: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Lab:
        try:
            for name in self.names.values():
                call(["ip", "netns", "add", name])
            self._wire()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.started:
            process.kill()
            process.wait()
        for name in self.names.values():
            with suppress(LabError):
                call(["ip", "netns", "del", name])

    def _wire(self) -> None:
        near, far = self.names.values()
        ends = {e: [INTERFACE, "mtu", str(MTU), "address", address] for e, address in HARDWARE.items()}
        link = ["link", "add", *ends["near"], "type", "veth", "peer", "name", *ends["far"], "netns", far]
        call(["ip", "-n", near, *link])
        for end, mine, theirs, gone in (("near", NEAR, FAR, "far"), ("far", FAR, NEAR, "near")):
            lines = [f"link set {INTERFACE} addrgenmode none", f"link set {INTERFACE} up", "link set lo up"]
            for family in (4, 6):
                other = ADDRESS[family][gone].format(1)
                lines += [
                    f"addr add {ADDRESS[family][end].format(1)}/{128 if family == 6 else 32} dev {INTERFACE}",
                    f"route add local {mine[family]} dev lo",
                    f"neigh replace {other} lladdr {HARDWARE[gone]} nud permanent dev {INTERFACE}",
                    f"route add {other} dev {INTERFACE}",
                    f"route add {theirs[family]} via {other} dev {INTERFACE}",
                ]
            call(["ip", "-n", self.names[end], "-batch", "-"], "\n".join(lines))

    def start(self, end: str, *argv: str, **more: Any) -> subprocess.Popen[Any]:
        """Start a Python module or program in the namespace of one end."""
        environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "scripts")))}
        argv = ("ip", "netns", "exec", self.names[end], *argv)
        process = subprocess.Popen(argv, env=environment, **more)
        self.started.append(process)
        return process

    def python(self, end: str, module: str, *argv: str, **more: Any) -> subprocess.Popen[Any]:
        return self.start(end, sys.executable, "-P", "-m", module, *argv, **more)

    def rules(self, end: str, family: int, table: str, lines: Sequence[str]) -> None:
        """Make these all the rules of a table."""
        argv = ["ip", "netns", "exec", self.names[end], f"{PROGRAM[family]}-restore", "-w"]
        call(argv, "\n".join((f"*{table}", *lines, "COMMIT")) + "\n")


@dataclass(frozen=True)
class Reading:
    """The counters of some queues and of the processes that serve them, at one moment."""

    at: float
    cpu: tuple[float, ...]  # seconds on a processor, by process
    queued: tuple[int, ...]  # packets ever put into each queue
    waiting: tuple[int, ...]  # of these, still without a verdict or not yet read
    dropped: int  # because a queue was full
    machine: float  # busy seconds of all processors


def read(pids: Sequence[int], queues: Sequence[int]) -> Reading:
    """All processes live in one namespace. Linux: fs/proc/base.c (schedstat), net/netfilter/nfnetlink_queue.c."""
    rows = {}
    for line in Path(f"/proc/{pids[0]}/net/netfilter/nfnetlink_queue").read_text().splitlines():
        number, _, waiting, _, _, dropped, user_dropped, sequence, _ = map(int, line.split())
        rows[number] = sequence, waiting, dropped + user_dropped
    if missing := [q for q in queues if q not in rows]:
        raise LabError(f"queue {missing[0]} is not bound: its process {pids} has ended")
    found = [rows[q] for q in queues]
    return Reading(
        at=time.monotonic(),
        cpu=tuple(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9 for pid in pids),
        queued=tuple(f[0] for f in found),
        waiting=tuple(f[1] for f in found),
        dropped=sum(f[2] for f in found),
        machine=busy(),
    )


def busy() -> float:
    """Seconds that all processors were not idle, stolen time included."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _idle, _iowait, irq, soft, steal = map(int, words)
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")
