"""What is compared: each kind of path between two namespaces of its own, side by side, and how it is known to be one.

    near ---- veth, MTU 1500 ---- far         10.203.0.1 -> 10.203.1.1, fd00:203::1 -> fd00:203:1::1

`none` nothing at all; `accept` an NFQUEUE loop at both ends that accepts; `srv6` the kernel's segment routing
with an HMAC that both ends demand; `wireguard` wireguard-go. `ebpf` and `nfqueue` are in dataplane_daemons.py.
All kinds treat both directions alike.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import netns

from benchmarks.lab import ADDRESS, INTERFACE, Lab, LabError, call, read
from scentd.wire import ip

T = TypeVar("T")

ENDS = ("near", "far")
PATIENCE = 20.0  # seconds that an end may take until it is ready
QUEUE, QUEUE_LENGTH = 100, 4096
ETH_P_ALL = 3


def until(condition: Callable[[], Any], what: Callable[[], str]) -> Any:
    """The condition's first true value. Raises LabError when there is none in time."""
    end = time.monotonic() + PATIENCE
    while not (value := condition()):
        if time.monotonic() > end:
            raise LabError(f"not within {PATIENCE:.0f} s: {what()}")
        time.sleep(0.05)
    return value


def inside(namespace: str, work: Callable[[], T]) -> T:
    """What `work` returns, or raises, in a network namespace. On its own thread: setns(2) moves the calling one."""

    def moved() -> T:
        netns.setns(namespace)
        return work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(moved).result()


class Wire(Lab):
    """A Lab with a name of its own, so that several stand side by side, and addresses that can be used at once."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.names = {end: f"scbench-{os.getpid()}-{kind}-{end}" for end in ENDS}

    def _wire(self) -> None:
        for end in ENDS:
            self.sysctl(end, "net.ipv6.conf.default.accept_dad=0")
        super()._wire()

    def sysctl(self, end: str, *settings: str) -> None:
        self.run(end, "sysctl", "-qw", *settings)

    def run(self, end: str, *argv: str, stdin: str = "") -> str:
        """What a command prints that is run to its end in the namespace."""
        return call(["ip", "netns", "exec", self.names[end], *argv], stdin)

    def ip(self, end: str, *lines: str) -> None:
        call(["ip", "-n", self.names[end], "-batch", "-"], "\n".join(lines))

    def module(self, name: str) -> tuple[str, ...]:
        return sys.executable, "-P", "-m", name

    def end(self, process: subprocess.Popen[Any], number: int = signal.SIGKILL) -> None:
        """End a process that start() made, and forget it."""
        with suppress(ProcessLookupError):
            process.send_signal(number)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        if process in self.started:
            self.started.remove(process)

    def tap(self, end: str) -> socket.socket:
        """A packet socket that sees what an end receives as it is on the wire: one of a single protocol comes later."""
        number = socket.htons(ETH_P_ALL)
        tap = inside(self.names[end], lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, number))
        tap.bind((INTERFACE, ETH_P_ALL))
        tap.setblocking(False)
        return tap


class Kind:
    """A path without anything. A context manager; `sent` and `arrived` count the small packets of all turns."""

    name = "none"
    families: tuple[int, ...] = (4, 6)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lab = Wire(self.name)
        self.sent = self.arrived = 0

    @staticmethod
    def missing() -> str:
        """What this machine lacks for it and the way out, or nothing."""
        return ""

    def __enter__(self) -> Kind:
        self.lab.__enter__()
        try:
            self.prepare()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.close()
        finally:
            self.lab.__exit__()

    def prepare(self) -> None:
        """Set both ends up and wait until packets pass."""

    def close(self) -> None:
        """End what was started; may be called half-way."""

    def address(self, family: int) -> str:
        """Of the far end."""
        return ADDRESS[family]["far"].format(1)

    def outer(self, family: int) -> int:
        """The family that is on the wire."""
        return family

    def genuine(self, packet: bytes) -> bool:
        """Whether a packet on the wire is what this kind claims."""
        return not ip.parse(packet).scent_at

    def check(self) -> None:
        """Raise LabError unless all the packets of the turns went the way that is claimed."""


class Accept(Kind):
    """An accept-only loop at each end, for what it sends and for what it receives."""

    name = "accept"

    def prepare(self) -> None:
        self.loops = {}
        for end in ENDS:
            argv = "benchmarks.accept_only", str(QUEUE), str(QUEUE_LENGTH)
            self.loops[end] = self.lab.python(end, *argv, stdout=subprocess.PIPE)
            if self.loops[end].stdout.readline().strip() != b"ready":
                raise LabError("the accept-only loop did not start; is netfilterqueue installed?")
            for family in (4, 6):
                # Neighbours are permanent, so no ICMPv6 of the link's own has to pass a queue.
                rules = (
                    f"-A {chain} {INTERFACE} -j NFQUEUE --queue-num {QUEUE}" for chain in ("OUTPUT -o", "PREROUTING -i")
                )
                self.lab.rules(end, family, "mangle", list(rules))

    def close(self) -> None:
        for loop in getattr(self, "loops", {}).values():
            self.lab.end(loop)

    def check(self) -> None:
        for end, loop in self.loops.items():
            queued, wanted = read([loop.pid], [QUEUE]).queued[0], self.sent if end == "near" else self.arrived
            if queued < wanted:
                raise LabError(f"accept: only {queued} of {wanted} packets went through the queue of {end}")


class SegmentRouting(Kind):
    """SRv6 in inline mode, one segment at the other end, HMAC-SHA-256 made and demanded by both ends."""

    name = "srv6"
    families = (6,)
    key, secret = "7", "scentd compares itself with this"
    _ROUTING, _SEGMENT_ROUTING, _FLAG_HMAC, _TLV_HMAC = 43, 4, 0x08, 5  # RFC 8754

    def prepare(self) -> None:
        for end, other in (ENDS, ENDS[::-1]):
            names = ADDRESS[6]
            mine, theirs, segment, via = names[end].format(3), *(names[other].format(n) for n in (3, 2, 1))
            self.lab.sysctl(end, *(f"net.ipv6.conf.{i}.seg6_enabled=1" for i in ("all", INTERFACE)))
            self.lab.sysctl(end, *(f"net.ipv6.conf.{i}.seg6_require_hmac=1" for i in ("all", INTERFACE)))
            # ip asks the terminal for the secret if there is one.
            argv = "setsid", "--wait", "ip", "sr", "hmac", "set", self.key, "sha256"
            self.lab.run(end, *argv, stdin=self.secret + "\n")
            # The kernel takes the header's 80 bytes from the route's MTU itself.
            encap = f"encap seg6 mode inline segs {segment} hmac {self.key}"
            self.lab.ip(
                end,
                f"addr add {mine}/128 dev {INTERFACE} nodad",
                f"route add {theirs}/128 {encap} via {via} dev {INTERFACE} src {mine}",
            )

    @staticmethod
    def missing() -> str:
        if not Path("/proc/sys/net/ipv6/conf/all/seg6_require_hmac").exists():
            return "the kernel has no SRv6 with HMAC (CONFIG_IPV6_SEG6_HMAC)"
        return ""

    def address(self, family: int) -> str:
        return ADDRESS[6]["far"].format(3)

    def genuine(self, packet: bytes) -> bool:
        routing = packet[6] == self._ROUTING and packet[42] == self._SEGMENT_ROUTING
        return routing and bool(packet[45] & self._FLAG_HMAC) and packet[80] == self._TLV_HMAC


class WireGuard(Kind):
    """wireguard-go at both ends, over IPv4, with its own MTU of 1420."""

    name = "wireguard"
    port = 51820
    sockets = Path("/var/run/wireguard")

    def prepare(self) -> None:
        self.interfaces = {end: f"wg{os.getpid()}{end[0]}" for end in ENDS}
        self.processes: list[subprocess.Popen[Any]] = []
        private = {end: call(["wg", "genkey"]) for end in ENDS}
        public = {end: call(["wg", "pubkey"], key).strip() for end, key in private.items()}
        for end, other in (ENDS, ENDS[::-1]):
            name = self.interfaces[end]
            argv = "wireguard-go", "-f", name
            self.processes.append(self.lab.start(end, *argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            opened = self.sockets / f"{name}.sock"
            until(opened.exists, lambda path=opened: f"wireguard-go opens {path}")
            settings = f"private-key /dev/stdin listen-port {self.port} peer {public[other]} allowed-ips 0.0.0.0/0,::/0"
            settings += f" endpoint {ADDRESS[4][other].format(1)}:{self.port}"
            self.lab.run(end, "wg", "set", name, *settings.split(), stdin=private[end])
            self.lab.ip(
                end,
                f"link set {name} up",
                *(f"addr add {self._inner(f, end)} dev {name}" for f in (4, 6)),
                *(f"route add {self._inner(f, other)} dev {name}" for f in (4, 6)),
            )

    def close(self) -> None:
        for process in getattr(self, "processes", ()):
            self.lab.end(process, signal.SIGTERM)  # so that it takes its socket away
        for name in getattr(self, "interfaces", {}).values():
            (self.sockets / f"{name}.sock").unlink(missing_ok=True)

    @staticmethod
    def _inner(family: int, end: str) -> str:
        return {4: "10.204.0.{}", 6: "fd00:204::{}"}[family].format(1 + ENDS.index(end))

    @staticmethod
    def missing() -> str:
        if all(map(shutil.which, ("wireguard-go", "wg"))) and Path("/dev/net/tun").exists():
            return ""
        return "wireguard-go is not there: apt-get install wireguard-go wireguard-tools (and the kernel's TUN device)"

    def address(self, family: int) -> str:
        return self._inner(family, "far")

    def outer(self, family: int) -> int:
        return 4

    def genuine(self, packet: bytes) -> bool:
        return packet[9] == socket.IPPROTO_UDP and int.from_bytes(packet[22:24], "big") == self.port

    def check(self) -> None:
        for end, name in self.interfaces.items():
            moment = self.lab.run(end, "wg", "show", name, "latest-handshakes").split()[-1]
            if moment == "0":
                raise LabError(f"wireguard: no handshake at {end}")
