"""The two daemons: their keys, configurations and life, what they must leave as they found it, what queues saw."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from lab import INTERFACE, Host, Lab, command, wait_for
from story import DemoError

from scentd.control.client import ask, follow
from scentd.datapath.offload import bpfprog, tcx
from scentd.errors import HostError, ScentdError

INTERVAL = 2  # seconds; 5 is the default, the reader's time is short
MAX_AGE = 12
GRACE = 2
HOLD = 2  # of an event. hold + interval < timeout: else the alarm's last epoch would renew the quarantine
TIMEOUT = 5
START_MBIT, STEP_MBIT, CEILING_MBIT = 10, 20, 90  # room for steps that a busy machine caused before ours
START_SECONDS = 20.0
OFFLOADED = "nfqueue+ebpf"  # status()["datapath"] with the offload, "nfqueue" without
QUEUE_SEQUENCE = 7  # column of /proc/net/netfilter/nfnetlink_queue: packets so far

TENANT = """\
[daemon]
state_dir = "{directory}"
control_socket = "{directory}/control.sock"

[datapath]
offload = "{offload}"
pin_dir = "{pins}"

[[network]]
name = "acme"
key_file = "{directory}/key"
addresses = ["{own.ipv4}", "{own.ipv6}"]
interval = "{interval}s"
labels = ["region=eu-west"]
high = {threshold:.2f}

[[network.source]]
kind = "cpu"
role = "db"

[[network.source]]
kind = "memory"
role = "db"

[[network.source]]
kind = "bandwidth"
interface = "{interface}"
capacity = "1gbit"

[[network.source]]
kind = "eve"
socket = "{directory}/eve.sock"
hold = "{hold}s"

[[peer]]
name = "service"
public_key = "{other_key}"
addresses = ["{other.ipv4}", "{other.ipv6}"]
verify = false
"""

SERVICE = """\
[daemon]
state_dir = "{directory}"
control_socket = "{directory}/control.sock"

[datapath]
offload = "{offload}"
pin_dir = "{pins}"

[verify]
max_age = "{max_age}s"
grace = "{grace}s"
absent = "reject"
rejected = "drop"

[[network]]
name = "service"
key_file = "{directory}/key"
addresses = ["{own.ipv4}", "{own.ipv6}"]

[[peer]]
name = "acme"
public_key = "{other_key}"
addresses = ["{other.ipv4}", "{other.ipv6}"]
absent = "reject"

[[resource]]
name = "pipe"
kind = "bandwidth"
interface = "{interface}"
link = "1gbit"
minimum = "{start}mbit"
normal = "{start}mbit"
maximum = "{ceiling}mbit"

[[policy]]
name = "widen"
when = 'cpu >= {threshold:.2f} && has("role=db;metric=cpu;level=high")'
matches = 2
profiles = 2
cooldown = "4s"
do = {{ kind = "amount", resource = "pipe", by = "{step}mbit" }}

[[policy]]
name = "isolate"
when = "threat >= 0.5"
do = {{ kind = "quarantine", timeout = "{timeout}s" }}
"""


class End:
    """One daemon in its namespace."""

    def __init__(self, lab: Lab, host: Host, offload: str) -> None:
        """`offload`: auto or off, as in the configuration."""
        self.lab, self.host = lab, host
        self.directory = lab.directory / host.name
        self.directory.mkdir()
        self.config = self.directory / "scentd.toml"
        self.socket = str(self.directory / "control.sock")
        self.offload = offload
        self.pins = lab.bpffs / host.name
        secret = command(sys.executable, "-P", "-m", "scentd", "keygen")
        key = os.open(self.directory / "key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(key, "w") as file:
            file.write(secret)
        self.public = command(sys.executable, "-P", "-m", "scentd", "pubkey", stdin=secret).strip()
        self.process: subprocess.Popen[bytes] | None = None

    def configure(self, template: str, other: End, threshold: float) -> None:
        text = template.format(
            directory=self.directory,
            offload=self.offload,
            pins=self.pins,
            own=self.host,
            other=other.host,
            other_key=other.public,
            interface=INTERFACE,
            interval=INTERVAL,
            max_age=MAX_AGE,
            grace=GRACE,
            hold=HOLD,
            timeout=TIMEOUT,
            start=START_MBIT,
            step=STEP_MBIT,
            ceiling=CEILING_MBIT,
            threshold=threshold,
        )
        self.config.write_text(text)

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-P", "-m", "scentd", *words, "--config", str(self.config)]

    def start(self) -> list[str]:
        """Start the daemon and wait until it answers. The command."""
        self.process = self.lab.start(self.host, *self.argv("run"), log=f"{self.host.name}.log")
        wait_for(f"the daemon of the {self.host.name}", self._answers, START_SECONDS)
        return self.host.argv(*self.argv("run"))

    def _answers(self) -> bool:
        assert self.process is not None  # start() made it
        if self.process.poll() is not None:
            log = self.lab.log(f"{self.host.name}.log").strip()[-800:]
            raise DemoError(f"the daemon of the {self.host.name} ended at its start: {log}")
        if not Path(self.socket).exists():
            return False
        try:
            return bool(self.status()["workers"]) and self._has_rules()
        except ScentdError:
            return False

    def _has_rules(self) -> bool:
        """The control socket is there before the rules are; those of IPv6 are the last."""
        return "SCENTD-IN" in self.lab.run(self.host, "ip6tables", "-w", "-t", "raw", "-S")

    def status(self) -> dict[str, Any]:
        return ask(self.socket, {"command": "status"})

    def explain(self, peer: str) -> dict[str, Any]:
        return ask(self.socket, {"command": "explain", "peer": peer, "limit": 100})

    def resources(self, kind: str) -> list[dict[str, Any]]:
        """What policies have set here of one kind."""
        return [r for r in self.status()["allocation"]["resources"] if r["kind"] == kind]

    def offloaded(self) -> bool:
        return self.status()["datapath"] == OFFLOADED

    def queued(self) -> int:
        """Packets that the kernel has given to this host's queues so far."""
        lines = self.lab.run(self.host, "cat", "/proc/net/netfilter/nfnetlink_queue").splitlines()
        return sum(int(line.split()[QUEUE_SEQUENCE]) for line in lines)

    def stop(self) -> int:
        """SIGTERM. The exit status, 0 after an orderly stop."""
        return -1 if self.process is None else self.lab.stop(self.process)

    def surroundings(self) -> dict[str, str]:
        """All that a daemon changes in a namespace, as the tools print it."""
        run, host = self.lab.run, self.host
        found = {
            f"{program} -t {table} -S": run(host, program, "-w", "-t", table, "-S")
            for program in ("iptables", "ip6tables")
            for table in ("raw", "security")
        }
        for family in ("-4", "-6"):
            found[f"ip {family} rule"] = run(host, "ip", family, "rule")
            # Status 2 is "no such table", the same as an empty one.
            found[f"ip {family} route table 22600"] = run(
                host, "ip", family, "route", "show", "table", "22600", statuses=(0, 2)
            )
        tables = run(host, "nft", "list", "tables").splitlines()
        found["nft list tables"] = "\n".join(table for table in tables if "scentd" in table)
        found["tc qdisc"] = run(host, "tc", "qdisc", "show", "dev", INTERFACE)
        for side in ("ingress", "egress"):
            found[f"tc filter {side}"] = run(host, "tc", "filter", "show", "dev", INTERFACE, side)
        found["tcx"] = self.lab.inside(host, linked_programs)
        found["BPF pins"] = " ".join(sorted(str(path) for path in self.pins.rglob("*")))
        return found


class Monitor:
    """Collects what `scentd monitor` would print, until the daemon ends."""

    def __init__(self, end: End) -> None:
        self.events: list[dict[str, Any]] = []
        self._socket = end.socket
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        self.events.extend(follow(self._socket, {"command": "monitor"}))

    def alarms(self) -> set[int]:
        """Epochs that were issued for an event."""
        return {e["epoch"] for e in self.events.copy() if e["event"] == "epoch" and e["alarm"]}


def linked_programs() -> str:
    """Numbers of the programs on the interface's tcx hooks, or why there can be none."""
    try:
        number = socket.if_nametoindex(INTERFACE)
        return str({side: bpfprog.programs_on(number, kind) for side, kind in tcx.TYPES.items()})
    except HostError as error:  # no libbpf, or a kernel without tcx
        return str(error)
