"""Hosts that run real daemons: identities, configuration files, `scentd run`, status, captured packets.

    with Topology("x") as net, Node(net.host("a"), directory) as a, Node(net.host("b"), directory) as b:
        net.link(a.host, b.host, ipv4="10.1.0.0/24", ipv6="fd00:1::/64")
        a.peers, b.peers = [peer_of(b)], [peer_of(a)]
        start(a, b)

`pair()` does all this. The files of a node are in its directory; the control socket is reached from outside,
because network namespaces do not divide the file system.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from topology import Host, Topology

from scentd.control import client
from scentd.errors import ScentdError
from scentd.state import key_files
from scentd.wire import keys

ROOT = Path(__file__).resolve().parents[2]
SLOWNESS = float(os.environ.get("SCENTD_TEST_SLOWNESS", "1"))  # of an emulated machine
PATIENCE = 15.0 * SLOWNESS  # seconds that a condition may take on a busy machine


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """The condition's first true value. Fails with `what` when there is none in time."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.05)


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def scentd(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end, in this process's own namespace."""
    return subprocess.run(
        [sys.executable, "-m", "scentd", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=environment(),
        **more,
    )


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}


class Node:
    """One host with an identity. `sections` are merged over the base configuration by `write()`."""

    def __init__(self, host: Host, directory: Path, issues: bool = True) -> None:
        self.host = host
        self.name = host.name
        self.directory = directory / host.name
        self.directory.mkdir(parents=True)
        self.key_file = self.directory / "key"
        self.key_file.touch(0o600)
        self.key_file.write_text(key_files.generate() + "\n")
        self.identity = key_files.load(str(self.key_file))
        self.eve = self.directory / "eve.sock"
        self.control = self.directory / "control.sock"
        self.config = self.directory / "scentd.toml"
        self.log = self.directory / "log"
        self.network: dict[str, Any] = {"interval": "2s"}
        if issues:
            self.network["source"] = [{"kind": "memory"}, {"kind": "eve", "socket": str(self.eve), "hold": "4s"}]
        self.peers: list[dict[str, Any]] = []
        self.sections: dict[str, Any] = {}
        self.program = ("-m", "scentd")  # for the interpreter; another front door is toys.py
        self.process: subprocess.Popen[Any] | None = None
        self.leaving = False  # its end leaves everything on the host, as the unit's
        self.pin_dir: Path | None = None  # on a BPF file system: with the offload
        self.environment: dict[str, str] = {}  # of the daemon, beside the usual

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        if self.running():
            self.stop()

    @property
    def addresses(self) -> list[str]:
        return [a for a in (self.host.ipv4, self.host.ipv6) if a]

    def address(self, version: int) -> str:
        return self.host.ipv4 if version == 4 else self.host.ipv6

    # -- the daemon ------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        own = {
            "state_dir": str(self.directory),
            "control_socket": str(self.control),
        }
        network = {"name": self.name, "key_file": str(self.key_file), "addresses": self.addresses, **self.network}
        base = {"daemon": own, "network": [network], "peer": self.peers}
        datapath = {"offload": "auto" if self.pin_dir else "off", **self.sections.get("datapath", {})}
        if self.pin_dir:
            datapath["pin_dir"] = str(self.pin_dir)
        more = {**self.sections, "daemon": {**own, **self.sections.get("daemon", {})}, "datapath": datapath}
        return {**base, **more}

    def write(self) -> None:
        self.config.write_text("".join(f"{key} = {toml(value)}\n" for key, value in self.settings().items()))

    def launch(self) -> None:
        """Start the daemon and do not wait for it."""
        with open(self.log, "ab") as log:
            self.process = self.host.start(
                *(sys.executable, *self.program, "run", "--config", str(self.config), *["--leave"] * self.leaving),
                env=environment() | self.environment,
                stdout=log,
                stderr=log,
            )

    def start(self) -> None:
        """Write the configuration, start the daemon, wait until it answers and, if it issues, has issued."""
        self.write()
        self.launch()
        self.wait_started()

    def wait_started(self) -> None:
        until(self.started, f"{self.name} starts; its log:\n{self.log.read_text()[-3000:]}")

    def started(self) -> bool:
        if not self.running():
            raise AssertionError(f"{self.name} ended: {self.log.read_text()[-3000:]}")
        with suppress(ScentdError):
            networks = self.status()["networks"]
            return "source" not in self.network or bool(networks[0].get("issued"))
        return False

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> int:
        """End it as systemd does. Returns the exit status."""
        return self.end(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9, and wait until its workers have gone, too."""
        workers = self.status()["workers"]
        self.end(signal.SIGKILL)
        until(lambda: not any(map(alive, workers)), "the workers of a killed daemon end")

    def end(self, number: int) -> int:
        assert self.process is not None
        self.signal(number)
        return self.process.wait(PATIENCE)

    def restart(self) -> None:
        if self.running():
            self.stop()
        self.start()

    def reload(self) -> dict[str, Any]:
        """Write the configuration, SIGHUP; the status once it was applied or refused."""
        before = self.status()["reloads"]
        self.write()
        self.signal(signal.SIGHUP)
        until(lambda: self.status()["reloads"] != before, f"{self.name} reloads")
        return self.status()

    def status(self, **request: Any) -> dict[str, Any]:
        return client.ask(str(self.control), {"command": "status", **request})

    def cli(self, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """A command on this host, with its configuration."""
        argv = [sys.executable, *self.program, arguments[0], "--config", str(self.config), *arguments[1:]]
        return self.host.run(*argv, check=False, env=environment(), **more)

    def alarm(self, node: str) -> None:
        """What Suricata writes when it sees an attack on a node."""
        line = {"event_type": "alert", "src_ip": node, "dest_ip": "192.0.2.66"}
        line["alert"] = {"severity": 1, "category": "A Network Trojan was detected", "signature": "test"}
        with socket.socket(socket.AF_UNIX) as end:
            end.connect(str(self.eve))
            end.sendall(json.dumps(line).encode() + b"\n")

    def epoch(self, peer: Node) -> int:
        """The highest epoch of the peer that was accepted here."""
        return next(p["highest_epoch"] for p in self.status()["peers"] if p["name"] == peer.name)

    def profile(self, peer: Node) -> dict[str, Any] | None:
        return next(p["profile"] for p in self.status()["peers"] if p["name"] == peer.name)

    def resources(self, kind: str) -> list[dict[str, Any]]:
        """What policies have set here of one kind."""
        return [r for r in self.status()["allocation"]["resources"] if r["kind"] == kind]

    def count(self, section: str, name: str = "") -> int:
        value = self.status()[section]
        return value[name] if name else value

    # -- traffic ---------------------------------------------------------

    def socket(
        self, version: int, kind: int = socket.SOCK_DGRAM, protocol: int = 0, bind: bool = True
    ) -> socket.socket:
        """A socket in the namespace, bound to the host's address and a free port, 5 s of patience."""
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        made = self.host.call(socket.socket, family, kind, protocol)
        made.settimeout(5 * SLOWNESS)
        if bind:
            made.bind((self.address(version), 0))
        return made

    def listener(self, version: int) -> socket.socket:
        made = self.socket(version, socket.SOCK_STREAM)
        made.listen(16)
        return made

    def capture(self, interface: str | None = None) -> Capture:
        return Capture(self.host, interface or self.host.interfaces[0])

    def pair_keys_to(self, receiver: Node, epoch: int) -> keys.PairKeys:
        secret = keys.pair_secret(self.identity, receiver.identity.public)
        return keys.direction_keys(secret, self.identity.public, receiver.identity.public, keys.period_of(epoch))


class Capture:
    """IP packets as an interface sees them arrive (and, where asked, leave)."""

    def __init__(self, host: Host, interface: str, outgoing: bool = False) -> None:
        self.outgoing = outgoing
        self.end = host.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self.end.bind((interface, 3))
        self.end.setblocking(False)

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self.end.close()

    def packets(self) -> list[bytes]:
        """What came since the last call."""
        found = []
        while True:
            try:
                frame, (_, _, kind, *_) = self.end.recvfrom(70000)
            except BlockingIOError:
                return found
            if frame[12:14] in (b"\x08\x00", b"\x86\xdd") and (kind != socket.PACKET_OUTGOING or self.outgoing):
                found.append(frame[14:])


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def peer_of(node: Node, **more: Any) -> dict[str, Any]:
    """The [[peer]] entry by which others know a node."""
    return {"name": node.name, "public_key": str(node.identity.public), "addresses": node.addresses, **more}


@contextmanager
def pair(tag: str, directory: Path, mtu: int = 1500, **hosts: Any) -> Iterator[tuple[Node, Node]]:
    """a ---- 10.1.0.0/24, fd00:1::/64 ---- b: each the other's peer, no daemon started yet."""
    with Topology(tag) as net:
        a, b = Node(net.host("a"), directory), Node(net.host("b"), directory, **hosts)
        net.link(a.host, b.host, ipv4="10.1.0.0/24", ipv6="fd00:1::/64", mtu=mtu)
        a.peers, b.peers = [peer_of(b)], [peer_of(a)]
        with a, b:
            yield a, b


def start(*nodes: Node) -> None:
    """Start all at once, then wait until each has issued."""
    for node in nodes:
        node.write()
        node.launch()
    for node in nodes:
        node.wait_started()


def acquainted(receiver: Node, sender: Node) -> dict[str, Any]:
    """Wait until the sender's first whole profile has arrived."""
    return until(lambda: receiver.profile(sender), f"{receiver.name} knows {sender.name}")


def say(sender: socket.socket, receiver: socket.socket, data: bytes) -> None:
    """One datagram that must arrive as it was sent."""
    sender.sendto(data, receiver.getsockname()[:2])
    got = receiver.recv(70000)
    assert got == data


def answered(sender: socket.socket, receiver: socket.socket, data: bytes = b"?", seconds: float = 1.0) -> bool:
    """Whether a datagram arrives; for what may be dropped. Older ones that wait are taken out first."""
    receiver.settimeout(0)
    with suppress(BlockingIOError, ConnectionError):
        while True:
            receiver.recv(70000)
    receiver.settimeout(seconds)
    with suppress(OSError):
        sender.sendto(data, receiver.getsockname()[:2])
        return receiver.recv(70000) == data
    return False


def settled(node: Node, name: str, slack: int = 0) -> int:
    """A count, once the workers have reported what was before: it grows by less than `slack` in a second and more."""
    end, before = time.monotonic() + PATIENCE, node.count(name)
    while time.monotonic() < end:
        time.sleep(1.2)
        now = node.count(name)
        if now - before <= slack:
            return now
        before = now
    raise AssertionError(f"not within {PATIENCE:.0f} s: {name} settles")


def told_too_long(one: socket.socket, other: socket.socket, data: bytes) -> bool:
    """Whether the socket says that a datagram is too long; if not it was sent."""
    try:
        one.sendto(data, other.getsockname()[:2])
    except OSError as error:
        if error.errno == errno.EMSGSIZE:
            return True
        raise
    return False


def transfer(sender: Node, receiver: Node, version: int, size: int = 1 << 20, patience: float = PATIENCE) -> None:
    """`size` bytes over a TCP connection from sender to receiver, all compared; so long it may stand still."""
    data = os.urandom(1 << 16) * (size >> 16)
    with receiver.listener(version) as listening, sender.socket(version, socket.SOCK_STREAM) as end:
        end.settimeout(PATIENCE)
        end.connect(listening.getsockname()[:2])
        other, _ = listening.accept()
        with other:
            assert exchange(end, other, data, patience) == data


def exchange(end: socket.socket, other: socket.socket, data: bytes, patience: float = PATIENCE) -> bytes:
    """Send and receive at the same time, so that neither buffer has to hold it all."""
    end.setblocking(False)
    other.setblocking(False)
    got, sent, last = bytearray(), 0, time.monotonic()
    while len(got) < len(data):
        before = sent + len(got)
        with suppress(BlockingIOError):
            sent += end.send(data[sent : sent + 65536])
        with suppress(BlockingIOError):
            got += other.recv(1 << 18)
        if sent + len(got) > before:
            last = time.monotonic()
        elif time.monotonic() - last > patience:
            raise AssertionError(f"TCP stands still after {len(got)} of {len(data)} bytes received")
        else:
            time.sleep(0.001)
    return bytes(got)
