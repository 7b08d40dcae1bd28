"""A real systemd as PID 1 (systemd-nspawn) in a network namespace of a test, on a tree with scentd installed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hosts import Node, until
from topology import Host, Topology
from tree import BIND_LIBRARIES, ENVIRONMENT, Tree, mount, readme_install, umount

CAPABILITIES = "CAP_BPF,CAP_PERFMON,CAP_NET_ADMIN,CAP_NET_RAW,CAP_SYS_RESOURCE"
START = 60.0  # seconds
CGROUPS = [p for p in (Path("/sys/fs/cgroup/systemd"), Path("/sys/fs/cgroup/unified")) if p.is_dir()] or [
    Path("/sys/fs/cgroup")
]


@contextmanager
def two_machines(tag: str, directory: Path) -> Iterator[tuple[Served, Served]]:
    """a ---- 10.1.0.0/24, fd00:1::/64 ---- b, with scentd installed, and not booted yet."""
    with Tree(directory / "tree") as tree, Topology(tag) as net:
        a, b = (Served(net.host(name), directory, tree) for name in "ab")
        net.link(a.host, b.host, ipv4="10.1.0.0/24", ipv6="fd00:1::/64")
        with a.machine, b.machine:
            yield a, b


class Machine:
    """A root tree to boot; `power_off` and `boot` again is a reboot. Leaving the block removes all of it."""

    def __init__(self, host: Host, directory: Path, tree: Tree) -> None:
        self.host = host
        self.name = host.namespace
        self.directory = directory
        self.root = directory / "root"
        self.tree = tree
        self.console = directory / "console"
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> Machine:
        self.directory.mkdir(parents=True)
        mount("tmpfs", self.directory)
        for name in ("upper", "work", "root", "bpf"):
            (self.directory / name).mkdir()
        mount("bpf", self.directory / "bpf")
        layers = f"lowerdir={self.tree.layer}:/,upperdir={self.directory}/upper,workdir={self.directory}/work"
        mount("overlay", self.root, layers)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.power_off()
        finally:
            umount(self.root, self.directory / "bpf", self.directory)
            for group in CGROUPS:
                until(lambda group=group: remove_group(group / self.name), f"{group}/{self.name} is empty")

    def boot(self) -> None:
        groups = [group / self.name for group in CGROUPS]
        for group in groups:
            group.mkdir(exist_ok=True)
        enter = "".join(f"echo $$ > {group}/cgroup.procs; " for group in groups)
        argv = [
            *("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--console=pipe"),
            *(f"--directory={self.root}", f"--machine={self.name}", f"--capability={CAPABILITIES}"),
            f"--network-namespace-path=/run/netns/{self.host.namespace}",
            *("--system-call-filter=bpf perf_event_open", f"--bind={self.directory}/bpf:/sys/fs/bpf"),
            BIND_LIBRARIES,
        ]
        with open(self.console, "ab") as console:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig=TERM", "sh", "-c", f'{enter} exec "$@"', "sh", *argv],
                stdout=console,
                stderr=console,
                stdin=subprocess.DEVNULL,
            )
        until(self.is_up, f"{self.name} boots; its console: {self.console.read_text()[-2000:]}", START)

    def is_up(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"{self.name} ended: {self.console.read_text()[-2000:]}")
        return bool(self.leader()) and self.run("systemctl", "is-system-running", check=False).stdout.strip() in (
            "running",
            "degraded",
        )

    def leader(self) -> int:
        """PID 1 of the machine, as this machine sees it; 0 before there is one."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[-1]) if children else 0

    def run(self, *argv: str, check: bool = True, timeout: float = 60, **more) -> subprocess.CompletedProcess[str]:
        """A command inside, as root and unconfined."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.leader()), "-a", "--wd=/", *argv],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=ENVIRONMENT,
            **more,
        )
        if check and done.returncode:
            raise AssertionError(f"{self.name}: {' '.join(argv)}: {done.returncode}: {done.stderr}{done.stdout}")
        return done

    def out(self, *argv: str, **more) -> str:
        return self.run(*argv, **more).stdout.strip()

    def show(self, unit: str, what: str) -> str:
        return self.out("systemctl", "show", "--value", f"--property={what}", unit)

    def log(self, unit: str = "scentd") -> str:
        return self.out("journalctl", "--no-pager", "-o", "cat", "-u", unit)

    def power_off(self) -> None:
        """An orderly shutdown; killed if it takes too long."""
        if self.process is None:
            return
        self.process.terminate()  # systemd-nspawn(1): tells the machine's PID 1 to shut down
        try:
            self.process.wait(START)
        except subprocess.TimeoutExpired:
            os.kill(self.leader(), signal.SIGKILL)  # killing systemd-nspawn would leave the machine behind
            self.process.wait()
            raise AssertionError(f"{self.name} does not shut down: {self.console.read_text()[-2000:]}") from None
        finally:
            self.process = None


def remove_group(group: Path) -> bool:
    """Remove a control group with all below it; its processes may take a moment to go."""
    for path in [*sorted(group.rglob("*/"), reverse=True), group]:
        with suppress(OSError):
            path.rmdir()
    return not group.exists()


class Served(Node):
    """A node whose daemon is the unit of a machine."""

    def __init__(self, host: Host, directory: Path, tree: Tree) -> None:
        super().__init__(host, directory)
        self.machine = Machine(host, directory / f"{host.name}-machine", tree)
        self.network["source"] = [{"kind": "memory"}]
        self.network["interval"] = "10s"  # a profile may be sent for three: a start must not take longer

    def settings(self):
        data = super().settings()
        for section in ("daemon", "datapath"):
            data.pop(section)
        data["network"][0]["key_file"] = self.network.get("key_file", "/etc/scentd/host.key")
        return data | self.sections

    def write(self) -> None:
        super().write()
        inside = self.machine.root / "etc/scentd"
        shutil.copy(self.config, inside / "scentd.toml")
        shutil.copy(self.key_file, inside / "host.key")
        os.chmod(inside / "host.key", 0o600)

    def launch(self) -> None:
        """By the README's words."""
        self.machine.run("sh", "-ec", readme_install()[1])

    def running(self) -> bool:
        return self.machine.process is not None and self.machine.show("scentd", "ActiveState") == "active"

    def started(self) -> bool:
        done = self.machine.run("scentd", "status", "--json", check=False)
        if done.returncode:
            return False
        return bool(self.status()["networks"][0].get("issued"))

    def wait_started(self) -> None:
        try:
            until(self.started, f"{self.name} starts", START)
        except AssertionError:
            raise AssertionError(f"{self.name} does not start: {self.machine.log()[-3000:]}") from None

    def status(self, **request):
        return json.loads(self.machine.out("scentd", "status", "--json", "--all"))

    def main_pid(self) -> int:
        return int(self.machine.show("scentd", "MainPID"))
