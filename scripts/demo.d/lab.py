"""Namespaces on one bridge, processes in them, and their removal.

    tenant 10.77.0.1 fd77::1   service 10.77.0.2 fd77::2   attacker 10.77.0.3 fd77::3
         \\_______________________ br0 (switch) _______________________/

The switch is a namespace, too: nothing is made in the host's own network. All names hold this process's id.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import netns
from story import DemoError

Result = TypeVar("Result")

INTERFACE = "eth0"  # of each host
BRIDGE = "br0"
STOP_SECONDS = 8.0
QUIET = ("net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")  # addresses can be used at once


@dataclass(frozen=True, slots=True)
class Host:
    name: str
    namespace: str
    mac: str = ""
    ipv4: str = ""
    ipv6: str = ""

    def address(self, family: int) -> str:
        return self.ipv4 if family == 4 else self.ipv6

    def argv(self, *argv: str) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *argv]


class Lab:
    """Context manager; leaving it ends what was started and removes everything."""

    def __init__(self) -> None:
        self.prefix = f"scdemo-{os.getpid()}-"
        self.directory = Path(tempfile.gettempdir(), self.prefix + secrets.token_hex(4))
        self.switch = Host("switch", self.prefix + "switch")
        self.tenant, self.service, self.attacker = (
            Host(name, self.prefix + name, f"02:00:00:00:77:0{n}", f"10.77.0.{n}", f"fd77::{n}")
            for n, name in enumerate(("tenant", "service", "attacker"), start=1)
        )
        self.bpffs = self.directory / "bpf"
        self._mounted = False
        self._started: list[subprocess.Popen[Any]] = []
        self._made: list[Host] = []

    def __enter__(self) -> Lab:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _build(self) -> None:
        self.directory.mkdir(mode=0o700)
        for host in (self.switch, self.tenant, self.service, self.attacker):
            with uninterrupted():
                command("ip", "netns", "add", host.namespace)
                self._made.append(host)
            self.run(host, "sysctl", "-qw", *QUIET)
        self.ip(self.switch, f"link add {BRIDGE} type bridge mcast_snooping 0", f"link set {BRIDGE} up")
        for host in (self.tenant, self.service, self.attacker):
            other = f"name {host.name} netns {self.switch.namespace}"
            self.ip(
                host,
                "link set lo up",
                f"link add {INTERFACE} address {host.mac} type veth peer {other}",
                f"link set {INTERFACE} up",
                f"addr add {host.ipv4}/24 dev {INTERFACE}",
                f"addr add {host.ipv6}/64 dev {INTERFACE}",
            )
            self.ip(self.switch, f"link set {host.name} master {BRIDGE} up")

    def mount_bpffs(self) -> None:
        """A BPF file system of our own: `ip netns exec` hides the one in /sys, and pins there would be the host's.

        To be called before the daemons start, which see the mounts that there are then. Raises DemoError.
        """
        self.bpffs.mkdir(mode=0o700)
        with uninterrupted():
            command("mount", "-t", "bpf", "bpf", str(self.bpffs))
            self._mounted = True

    def close(self) -> None:
        """Harmless twice. Ctrl-C does not stop it half-way."""
        with uninterrupted():
            for process in reversed(self._started):
                self.stop(process)
            self._started.clear()
            while self._made:
                argv = ["ip", "netns", "del", self._made.pop().namespace]
                subprocess.run(argv, check=False, start_new_session=True)
            if self._mounted:
                # Lazy: somebody may be looking around in there. What is pinned goes with it.
                subprocess.run(["umount", "--lazy", self.bpffs], check=False, start_new_session=True)
                self._mounted = False
            shutil.rmtree(self.directory, ignore_errors=True)

    def left_behind(self) -> list[str]:
        """What is still there under our names."""
        names = [n for n in netns.listnetns() if n.startswith(self.prefix)]
        return names + ([str(self.directory)] if self.directory.exists() else [])

    def ip(self, host: Host, *lines: str) -> None:
        command("ip", "-n", host.namespace, "-batch", "-", stdin="\n".join(lines))

    def run(self, host: Host, *argv: str, statuses: tuple[int, ...] = (0,), timeout: float = 20.0) -> str:
        """What a command prints. Raises DemoError unless it ends with one of `statuses`."""
        return command(*host.argv(*argv), statuses=statuses, timeout=timeout)

    def start(self, host: Host, *argv: str, log: str) -> subprocess.Popen[bytes]:
        """Start a command whose output goes to the file `log`; ended with the lab at the latest.

        In a session of its own: Ctrl-C is for us, and we end the others in their order.
        """
        with open(self.directory / log, "wb") as file, uninterrupted():
            process = subprocess.Popen(
                host.argv(*argv), stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
            self._started.append(process)
        return process

    def stop(self, process: subprocess.Popen[Any]) -> int:
        """SIGTERM, and only if that does not help SIGKILL to all of its session. Its exit status."""
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # a daemon's workers, if it could not end them
        return process.wait()

    def log(self, name: str) -> str:
        path = self.directory / name
        return path.read_text(errors="replace") if path.exists() else ""

    def inside(self, host: Host, function: Callable[..., Result], *args: Any) -> Result:
        """The function's result, run in a thread that has entered the namespace; sockets it makes stay there."""
        box: list[Any] = []

        def enter() -> None:
            try:
                netns.setns(host.namespace)
                box.extend((function(*args), None))
            except BaseException as error:  # raised again in the caller's thread
                box.extend((None, error))

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if box[1] is not None:
            raise box[1]
        return box[0]


def command(*argv: str, stdin: str = "", statuses: tuple[int, ...] = (0,), timeout: float = 20.0) -> str:
    """What a program prints. Raises DemoError."""
    try:
        done = subprocess.run(
            argv, input=stdin, capture_output=True, text=True, timeout=timeout, check=False, start_new_session=True
        )
    except FileNotFoundError:
        raise DemoError(f"{argv[0]}: not found; scripts/setup installs what the demo needs") from None
    except subprocess.TimeoutExpired:
        raise DemoError(f"{' '.join(argv)}: no end after {timeout:g} s") from None
    if done.returncode not in statuses:
        raise DemoError(f"{' '.join(argv)}: status {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


def wait_for(what: str, ready: Callable[[], Result | None], seconds: float, pause: float = 0.05) -> Result:
    """The first true result of `ready`. Raises DemoError after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        result = ready()
        if result:
            return result
        if time.monotonic() > end:
            raise DemoError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(pause)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals that would end us wait until the block is done: what it makes is then known, and removed.

    A mask would not do: it is the thread's alone, and there are others.
    """
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {n: signal.signal(n, lambda number, _frame: came.append(number)) for n in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])
