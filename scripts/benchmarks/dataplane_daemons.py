"""The kinds that are scentd: a real daemon at each end, with the offload or on the queue alone.

Both ends sign and verify, and drop what comes without a scent: no packet can take another way unseen.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.dataplane_kinds import ENDS, Kind, until
from benchmarks.lab import ADDRESS, LabError, call
from scentd.control import client
from scentd.errors import ScentdError
from scentd.state import key_files
from scentd.wire import ip

INTERVAL = "5s"


class Daemon:
    """`scentd run` at one end, with its files in a directory of its own."""

    def __init__(self, kind: Kind, end: str) -> None:
        self.kind, self.name = kind, end
        self.directory = kind.folder / end
        self.directory.mkdir()
        self.key_file = self.directory / "key"
        self.key_file.touch(0o600)
        self.key_file.write_text(key_files.generate() + "\n")
        self.public_key = str(key_files.load(str(self.key_file)).public)
        self.addresses = [ADDRESS[family][end].format(1) for family in (4, 6)]
        self.control = str(self.directory / "control.sock")
        self.log = self.directory / "log"
        self.process: subprocess.Popen[Any] | None = None

    def start(self, other: Daemon, datapath: dict[str, str]) -> None:
        """Do not wait for it."""
        config = self.directory / "scentd.toml"
        peer = {"name": other.name, "public_key": other.public_key, "addresses": other.addresses, "absent": "drop"}
        network = {"name": self.name, "key_file": str(self.key_file), "addresses": self.addresses, "interval": INTERVAL}
        sections = {
            "daemon": {
                "state_dir": str(self.directory),
                "control_socket": self.control,
            },
            "datapath": datapath,
            "network": [network | {"source": [{"kind": "memory"}]}],
            "peer": [peer],
        }
        config.write_text("".join(f"{key} = {toml(value)}\n" for key, value in sections.items()))
        argv = sys.executable, "-P", "-m", "scentd", "run", "--config", str(config)
        with self.log.open("wb") as log:
            self.process = self.kind.lab.start(self.name, *argv, stdout=log, stderr=log)

    def status(self) -> dict[str, Any]:
        """Raises LabError with the end of the log if the daemon has ended."""
        assert self.process is not None
        if self.process.poll() is not None:
            raise LabError(f"{self.kind.name}: scentd at {self.name} ended; {self.said()}")
        return client.ask(self.control, {"command": "status"})

    def acquainted(self) -> bool:
        """Whether the other end's first whole profile has arrived."""
        with suppress(ScentdError):  # the control socket is not there yet
            return self.status()["peers"][0]["profile"] is not None
        return False

    def said(self) -> str:
        return f"its log ends:\n{self.log.read_text()[-2000:]}"

    def stop(self) -> None:
        if self.process is not None:
            self.kind.lab.end(self.process, signal.SIGTERM)


class Queue(Kind):
    """scentd without the offload."""

    name = "nfqueue"
    offload, datapath = "off", "nfqueue"

    def prepare(self) -> None:
        self.folder.mkdir()
        self.bpf = self.folder / "bpf"
        self.bpf.mkdir()
        self.daemons: dict[str, Daemon] = {}
        # `ip netns exec` mounts another /sys, so the bpf file system that everybody has is not seen inside.
        call(["mount", "-t", "bpf", "bpf", str(self.bpf)])
        self.daemons = {end: Daemon(self, end) for end in ENDS}
        for end, other in (ENDS, ENDS[::-1]):
            settings = {"offload": self.offload, "pin_dir": str(self.pins(end))}
            self.daemons[end].start(self.daemons[other], settings)
        for end, daemon in self.daemons.items():
            until(daemon.acquainted, lambda d=daemon: f"{self.name}: scentd at {d.name} gets a profile; {d.said()}")
            found = daemon.status()["datapath"]
            if found != self.datapath:
                raise LabError(
                    f"{self.name}: scentd's datapath at {end} is {found!r}, not {self.datapath!r}; "
                    f"scentd doctor says what the kernel lacks; {daemon.said()}"
                )
        self.before = {end: daemon.status() for end, daemon in self.daemons.items()}

    def pins(self, end: str) -> Path:
        return self.bpf / end

    def close(self) -> None:
        for daemon in getattr(self, "daemons", {}).values():
            daemon.stop()
        if hasattr(self, "bpf") and self.bpf.is_mount():
            call(["umount", str(self.bpf)])

    def genuine(self, packet: bytes) -> bool:
        found = ip.parse(packet)
        return bool(found.scent_at) and not found.malformed

    def check(self) -> None:
        for end, key, wanted in (("near", "stamped", self.sent), ("far", "accepted", self.arrived)):
            before, daemon = self.before[end], self.daemons[end]
            # Workers report once a second.
            until(
                lambda b=before, d=daemon, k=key, w=wanted: d.status()[k] - b[k] >= w,
                lambda e=end, k=key, w=wanted: f"{self.name}: {w} small packets are {k} at {e}",
            )
            after = daemon.status()
            bad = {"absent": after["absent"] - before["absent"]}
            for section in ("rejected", "unstamped"):
                bad |= {f"{section} {reason}": n - before[section][reason] for reason, n in after[section].items()}
            if problems := {reason: count for reason, count in bad.items() if count}:
                raise LabError(f"{self.name}: not every packet at {end} was stamped and accepted: {problems}")
            if after["worker_restarts"] != before["worker_restarts"]:
                raise LabError(f"{self.name}: a worker at {end} was restarted during the measurement")


class Offload(Queue):
    """scentd with its eBPF programs."""

    name = "ebpf"
    offload, datapath = "auto", "nfqueue+ebpf"


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)
