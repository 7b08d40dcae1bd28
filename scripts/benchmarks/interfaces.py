"""What many interfaces cost a sender: its start, one interface that comes or goes, its stop.

    near ---- wire ---- far        near has further veth pairs, as a container host has; their other ends are elsewhere

One daemon, at near, with the offload. An interface is served when the status document names it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.dataplane_daemons import toml
from benchmarks.lab import ADDRESS, Lab, LabError, call
from benchmarks.report import columns, spread
from scentd.control import client
from scentd.errors import ScentdError
from scentd.state import key_files

ROUNDS = 3
COUNTS = (0, 100, 1000)
QUICK = (10,)
CHANGES = 5  # interfaces that come and go in a round
REST = 3.0  # seconds in which a change has had all its effects: an IPv6 address is tentative for two
SETTLING = 3.0  # seconds until new interfaces have their addresses
PATIENCE = 180.0  # seconds
CHURN = 0.02  # seconds from one interface that comes to the next
GOALS = {"ready_s": 1.0, "change_cpu_ms": 10.0}  # at 1,000


class Crowd:
    """A Lab with further interfaces at near."""

    def __init__(self, lab: Lab) -> None:
        self.near, self.elsewhere = lab.names["near"], f"scbench-{os.getpid()}-elsewhere"

    def __enter__(self) -> Crowd:
        call(["ip", "netns", "add", self.elsewhere])
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(LabError):
            call(["ip", "netns", "del", self.elsewhere])

    def add(self, *names: str) -> None:
        lines = [f"link add {name} up type veth peer name {name} netns {self.elsewhere}" for name in names]
        call(["ip", "-n", self.near, "-batch", "-"], "\n".join(lines))
        call(["ip", "-n", self.elsewhere, "-batch", "-"], "\n".join(f"link set {name} up" for name in names))

    def delete(self, name: str) -> None:
        call(["ip", "-n", self.near, "link", "del", name])

    @contextmanager
    def churn(self) -> Iterator[None]:
        """Interfaces come and go all the time."""
        one = f"ip link add churn%s up type veth peer name churn%s netns {self.elsewhere}; sleep {CHURN}"
        loop = f"while :; do {one % (1, 1)}; ip link del churn1; done"
        argv = ["ip", "netns", "exec", self.near, "sh", "-c", loop]
        with subprocess.Popen(argv, start_new_session=True, stderr=subprocess.DEVNULL) as process:
            try:
                yield
            finally:
                os.killpg(process.pid, signal.SIGKILL)


class Sender:
    """`scentd run` at near."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        self.control = str(folder / "control.sock")
        self.log = folder / "log"
        self.config = folder / "scentd.toml"
        self.process: subprocess.Popen[Any] | None = None
        for name in ("near", "far"):
            (folder / name).touch(0o600)
            (folder / name).write_text(key_files.generate() + "\n")
        self.write(folder / "bpf")

    def write(self, pins: Path) -> None:
        self.config.write_text("".join(f"{key} = {toml(value)}\n" for key, value in self.sections(pins).items()))

    def sections(self, pins: Path) -> dict[str, Any]:
        """The configuration."""
        addresses = {end: [ADDRESS[family][end].format(1) for family in (4, 6)] for end in ("near", "far")}
        public = str(key_files.load(str(self.folder / "far")).public)
        network = {"name": "near", "key_file": str(self.folder / "near"), "addresses": addresses["near"]}
        return {
            "daemon": {
                "state_dir": str(self.folder),
                "control_socket": self.control,
            },
            "datapath": {"pin_dir": str(pins / "near"), "workers": 1},
            "network": [network | {"source": [{"kind": "memory"}]}],
            "peer": [{"name": "far", "public_key": public, "addresses": addresses["far"], "absent": "drop"}],
        }

    def start(self, number: int) -> dict[str, float]:
        """Seconds to READY, and until so many interfaces are served."""
        path = self.folder / "notify"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard, self.log.open("wb") as log:
            heard.bind(str(path))
            heard.setblocking(False)
            argv = [f"NOTIFY_SOCKET={path}", sys.executable, "-P", "-m", "scentd", "run", "--config", str(self.config)]
            began = time.monotonic()
            self.process = self.lab.start("near", "env", *argv, stdout=log, stderr=log)
            self.until(lambda: is_ready(heard), "scentd is ready")
            ready = time.monotonic() - began
        self.until(lambda: len(self.served()) >= number, f"{number} interfaces are served")
        return {"ready_s": ready, "served_s": time.monotonic() - began}

    def served(self) -> list[str]:
        with suppress(ScentdError):
            return client.ask(self.control, {"command": "status"})["offload"]["ingress"]
        return []

    def until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            self.running()
            if time.monotonic() > end:
                raise LabError(f"not within {PATIENCE:.0f} s: {what}; {self.log.read_text()[-2000:]}")
            time.sleep(0.002)

    def running(self) -> int:
        """The process. Raises LabError with the end of the log if it has ended."""
        assert self.process is not None
        if self.process.poll() is not None:
            raise LabError(f"scentd ended: {self.log.read_text()[-2000:]}")
        return self.process.pid

    def used(self) -> float:
        """Seconds on a processor: of the daemon's threads, and of the children that have ended."""
        pid = self.running()
        tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
        ended = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[13:15]
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9 + sum(map(int, ended)) / 100

    def stop(self) -> float:
        """Seconds."""
        assert self.process is not None
        began = time.monotonic()
        self.process.terminate()
        self.process.wait(PATIENCE)
        return time.monotonic() - began


def is_ready(heard: socket.socket) -> bool:
    with suppress(BlockingIOError):
        return b"READY=1" in heard.recv(4096)
    return False


def cost(sender: Sender, change: Callable[[], None], rest: float) -> float:
    """Milliseconds on a processor that a change costs beyond what the daemon uses anyway."""
    first = sender.used()
    time.sleep(rest)
    idle = sender.used() - first
    first = sender.used()
    change()
    time.sleep(rest)
    return (sender.used() - first - idle) * 1e3


@contextmanager
def bpf_folder() -> Iterator[tuple[Path, Path]]:
    """A directory, and in it a BPF file system: `ip netns exec` hides the usual one."""
    with tempfile.TemporaryDirectory(prefix="scentd-bench-") as name:
        bpf = Path(name) / "bpf"
        bpf.mkdir()
        call(["mount", "-t", "bpf", "bpf", str(bpf)])
        try:
            yield Path(name), bpf
        finally:
            call(["umount", str(bpf)])


def measure(sender: Sender, crowd: Crowd, number: int, changes: int, rest: float) -> dict[str, list[float]]:
    """One turn: a start, changes, a stop; a start, a stop under churn."""
    turn = {name: [value] for name, value in sender.start(number).items()}
    for name in ("come_cpu_ms", "go_cpu_ms", "come_ms", "go_ms"):
        turn[name] = []
    for _ in range(changes):
        turn["come_cpu_ms"].append(cost(sender, lambda: crowd.add("extra"), rest))
        turn["go_cpu_ms"].append(cost(sender, lambda: crowd.delete("extra"), rest))
        for name, change, wanted in (("come_ms", crowd.add, True), ("go_ms", crowd.delete, False)):
            began = time.monotonic()
            change("extra")
            sender.until(lambda wanted=wanted: ("extra" in sender.served()) is wanted, "a change is followed")
            turn[name].append((time.monotonic() - began) * 1e3)
            time.sleep(rest)
    turn["stop_s"] = [sender.stop()]
    sender.start(number)
    with crowd.churn():
        time.sleep(rest)
        turn["stop_churn_s"] = [sender.stop()]
    return turn


def run(rounds: int, quick: bool) -> dict[str, Any]:
    rows = []
    with ExitStack() as stack:
        lab = stack.enter_context(Lab())
        crowd = stack.enter_context(Crowd(lab))
        folder, _ = stack.enter_context(bpf_folder())
        sender, made = Sender(lab, folder), 0
        for number in QUICK if quick else COUNTS:
            crowd.add(*(f"v{n}" for n in range(made, number)))
            made = number
            time.sleep(SETTLING)
            turns = [measure(sender, crowd, number, *((1, 0.3) if quick else (CHANGES, REST))) for _ in range(rounds)]
            values = {name: [value for turn in turns for value in turn[name]] for name in turns[0]}
            rows.append({"interfaces": number, **{name: spread(found) for name, found in values.items()}})
    return {"benchmark": "interfaces", "quick": quick, "rounds": rounds, "rows": rows, "goals": GOALS}


TITLES = {
    "ready_s": "start to READY, s",
    "served_s": "start until all are served, s",
    "come_cpu_ms": "one comes, processor, ms",
    "come_ms": "one comes until it is served, ms",
    "go_cpu_ms": "one goes, processor, ms",
    "go_ms": "one goes until it is forgotten, ms",
    "stop_s": "stop, s",
    "stop_churn_s": "stop while interfaces come and go, s",
}


def table(result: dict[str, Any]) -> str:
    head = ["further interfaces", *(str(row["interfaces"]) for row in result["rows"])]
    lines = [[title, *(f"{row[name]['median']:.3g}" for row in result["rows"])] for name, title in TITLES.items()]
    return columns([head, *lines])
