"""The same as in fleet.py, with the roles on three hosts and NATS between them.

collector, profiler, near (a gateway) ---- hub, with nats-server        near ---- wire ---- far
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.dataplane_daemons import toml
from benchmarks.fleet import INTERVAL, Fleet, Pages
from benchmarks.lab import Lab, LabError, call
from scentd.control import client
from scentd.errors import ScentdError
from scentd.state import key_files

HOSTS = ("hub", "collector", "profiler", "near")
ADDRESS = {name: f"10.204.0.{n}" for n, name in enumerate(HOSTS, start=1)}
PORT = 4222
DUTIES = {"collector": {"profiler": "sign"}, "profiler": {"collector": "collect", "near": "stamp"}}
DUTIES["near"] = DUTIES["collector"]


class BusLab(Lab):
    """With three more namespaces on one bridge, which is in the hub."""

    def __enter__(self) -> BusLab:
        super().__enter__()
        try:
            self._join()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _join(self) -> None:
        for name in HOSTS[:-1]:
            self.names[name] = self.names["near"].removesuffix("near") + name
            call(["ip", "netns", "add", self.names[name]])
        hub = self.names["hub"]
        lines = ["link add br0 type bridge", "link set br0 up", f"addr add {ADDRESS['hub']}/24 dev br0"]
        call(["ip", "-n", hub, "-batch", "-"], "\n".join(lines))
        for name in HOSTS[1:]:
            lines = [
                f"link add bus type veth peer name {name} netns {hub}",
                "link set bus up",
                "link set lo up",
                f"addr add {ADDRESS[name]}/24 dev bus",
            ]
            call(["ip", "-n", self.names[name], "-batch", "-"], "\n".join(lines))
            call(["ip", "-n", hub, "link", "set", name, "master", "br0", "up"])


class BusFleet(Fleet):
    """near stamps what the profiler signs of what the collector measures."""

    def __init__(self, lab: Lab, folder: Path, pages: Pages) -> None:
        self.processes: dict[str, subprocess.Popen[Any]] = {}
        for name in DUTIES:
            (folder / f"{name}.bus").touch(0o600)
            (folder / f"{name}.bus").write_text(key_files.generate() + "\n")
        super().__init__(lab, folder, pages)

    def write(self, pins: Path) -> None:
        sections = self.sections(pins)
        whole = [self.network(n) for n in range(len(self.addresses))]
        base = [{key: n[key] for key in ("name", "addresses", "interval")} for n in whole]
        publics = [str(key_files.load(n["key_file"]).public) for n in whole]
        roles = {
            "collector": [b | {"source": n["source"], "stamp": False} for b, n in zip(base, whole, strict=True)],
            "profiler": [
                b | {"key_file": n["key_file"], "weights": n["weights"], "sign": True, "stamp": False}
                for b, n in zip(base, whole, strict=True)
            ],
            "near": [b | {"public_key": key, "stamp": True} for b, key in zip(base, publics, strict=True)],
        }
        for name, networks in roles.items():
            made = sections | {"network": networks, "bus": self.bus(name)}
            made["peer"] = [p | {"verify": False} for p in sections["peer"]]
            if name != "near":
                directory = self.folder / name
                directory.mkdir(exist_ok=True)
                files = {"state_dir": directory, "control_socket": directory / "s"}
                made["daemon"] = {key: str(value) for key, value in files.items()}
                made["datapath"] = {"offload": "off"}
            self.file(name).write_text("".join(f"{key} = {toml(value)}\n" for key, value in made.items()))

    def file(self, name: str) -> Path:
        return self.config if name == "near" else self.folder / f"{name}.toml"

    def bus(self, name: str) -> dict[str, Any]:
        key_files_of = {n: str(self.folder / f"{n}.bus") for n in DUTIES}
        hosts = [
            {"name": other, "public_key": str(key_files.load(key_files_of[other]).public), "duties": [duty]}
            for other, duty in DUTIES[name].items()
        ]
        url = [f"nats://{ADDRESS['hub']}:{PORT}"]
        return {"url": url, "name": name, "key_file": key_files_of[name], "host": hosts}

    def start(self, number: int) -> dict[str, float]:
        self.start_bus()
        for name in ("collector", "profiler"):
            with open(self.folder / f"{name}.log", "wb") as log:
                argv = ("scentd", "run", "--config", str(self.file(name)))
                self.processes[name] = self.lab.python(name, *argv, stdout=log, stderr=log)
        ready = super().start(number)
        assert self.process is not None  # start() made it
        self.processes["near"] = self.process
        self.until(lambda: self.status("near")["bus"]["counters"].get("taken", 0) > 0, "the gateway has profiles")
        return ready

    def start_bus(self) -> None:
        if shutil.which("nats-server") is None:
            raise LabError("nats-server: not found; scripts/setup installs it")
        file = self.folder / "nats.conf"
        store = {"store_dir": str(self.folder / "nats")}
        file.write_text(json.dumps({"listen": f"0.0.0.0:{PORT}", "jetstream": store}))
        with open(self.folder / "nats.log", "wb") as log:
            self.lab.start("hub", "nats-server", "-c", str(file), stdout=log, stderr=log)

    def status(self, name: str) -> dict[str, Any]:
        path = self.control if name == "near" else str(self.folder / name / "s")
        with suppress(ScentdError):
            return client.ask(path, {"command": "status"})
        return {"bus": {"counters": {}}, "workers": []}

    def cost(self, seconds: float) -> list[dict[str, Any]]:
        """Of each role, for a network and an interval: microseconds of processor, bytes that it sent."""
        before = {name: (cpu(p.pid), self.sent(name)) for name, p in self.processes.items()}
        time.sleep(seconds)
        share = len(self.addresses) * seconds / INTERVAL
        return [
            {
                "role": name,
                "us": round((cpu(p.pid) - before[name][0]) / share * 1e6),
                "bytes": round((self.sent(name) - before[name][1]) / share),
            }
            for name, p in self.processes.items()
        ]

    def sent(self, name: str) -> int:
        return self.status(name)["bus"]["counters"].get("sent_bytes", 0)


def cpu(pid: int) -> float:
    """Seconds on a processor of all threads."""
    return sum(int(t.read_text().split()[0]) for t in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9
