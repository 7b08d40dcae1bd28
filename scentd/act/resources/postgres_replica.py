"""The replicas of one peer on this host: directories, base backups, servers. All of it as the servers' user.

A directory is named NUMBER-PORT, and NUMBER-PORT.new until its base backup is whole: a name tells all that must be
known after a kill. The daemon itself needs no right to look into them.
"""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pwd import getpwnam

from scentd.act.command import ENVIRONMENT
from scentd.act.resources.backend import Refused
from scentd.errors import HostError

NAME = re.compile(r"^([1-9]\d{0,3})-(\d{1,5})(\.new)?$")
PG_CTL = "pg_ctl"
LOOK = 0.02  # seconds between two looks at a program
SHORT = 30.0  # seconds for a program that only looks at files
LOG = "scentd.log"


@dataclass(frozen=True, slots=True)
class ReplicaFiles:
    """A directory of a replica."""

    path: str
    number: int
    port: int
    whole: bool  # its base backup has come to its end


class ReplicaHost:
    """`start` is "pg_ctl" or the name of a template unit, such as "scentd-replica@.service"."""

    def __init__(self, directory: str, user: str, start: str, wait: Callable[[float], None]) -> None:
        self.directory, self._user, self._start, self._wait = directory, user, start, wait

    def files(self) -> list[ReplicaFiles]:
        """What is there, by number."""
        try:
            names = self.run(["ls", "-1A", self.directory], SHORT).splitlines()
        except HostError as error:
            if "No such file" not in str(error):
                raise
            names = []
        found = [
            ReplicaFiles(f"{self.directory}/{name}", int(match[1]), int(match[2]), not match[3])
            for name in names
            if (match := NAME.match(name))
        ]
        return sorted(found, key=lambda each: (each.number, each.path))

    def make_directory(self) -> None:
        try:
            self.run(["mkdir", "-p", "-m", "0700", self.directory], SHORT)
        except HostError as error:
            if "ermission denied" not in str(error) and "Read-only" not in str(error):
                raise
            way_out = f"`install -d -o {self._user} {self.directory}`, and ReadWritePaths= of it in scentd's unit"
            raise Refused(f"{error}: {way_out}") from None

    def read(self, path: str) -> bytes:
        return self.run(["cat", path], SHORT).encode() if path else b""

    def back_up(self, tools: str, conninfo: str, slot: str, target: ReplicaFiles, timeout: float) -> None:
        """Copy the primary into `target`, which is not whole before `finish`. `conninfo` holds no password."""
        options = [
            "--wal-method=stream",
            f"--slot={slot}",
            "--write-recovery-conf",
            "--checkpoint=fast",
            "--no-password",
        ]
        arguments = [f"--dbname={conninfo}", f"--pgdata={target.path}", *options]
        self.run([self._tool(tools, "pg_basebackup"), *arguments], timeout)

    def configure(self, target: ReplicaFiles, settings: Mapping[str, str], hba_file: str) -> None:
        """Write the settings behind those that the backup has brought: the last one counts."""
        names = self.run(["ls", "-1A", target.path], SHORT).splitlines()
        if not hba_file and "pg_hba.conf" not in names:
            raise Refused(
                "the primary keeps its pg_hba.conf outside of its data, as Debian does, so the backup has none: "
                "write one for the replicas and name it in hba_file"
            )
        files = {"hba_file": hba_file} if hba_file else {}
        lines = [f"{name} = '{quoted(value)}'\n" for name, value in {**settings, **files}.items()]
        text = "\n# Written by scentd.\n" + "".join(lines)
        self.run(["tee", "-a", f"{target.path}/postgresql.auto.conf"], SHORT, text)
        self.run(["touch", f"{target.path}/postgresql.conf", f"{target.path}/pg_ident.conf"], SHORT)

    def finish(self, target: ReplicaFiles) -> ReplicaFiles:
        whole = ReplicaFiles(target.path.removesuffix(".new"), target.number, target.port, True)
        self.run(["mv", "-T", target.path, whole.path], SHORT)
        return whole

    def start(self, tools: str, replica: ReplicaFiles, timeout: float) -> None:
        """Begin to start it; it may run already."""
        if self._start == PG_CTL:
            options = ["-s", "-W", "-D", replica.path, "-l", f"{replica.path}/{LOG}"]
            with suppress(HostError):  # it runs; if it does not, whoever waits for it tells why
                self.run([self._tool(tools, PG_CTL), "start", *options], timeout)
        else:
            self._systemctl("reset-failed", replica, timeout, check=False)
            self._systemctl("start", replica, timeout)

    def stop(self, tools: str, replica: ReplicaFiles, timeout: float) -> None:
        """End it at once: its files are to go, and nobody is there any more. It may have ended already."""
        if self._start == PG_CTL:
            options = ["-s", "-w", "-m", "immediate", "-t", str(round(timeout)), "-D", replica.path]
            try:
                self.run([self._tool(tools, PG_CTL), "stop", *options], timeout + SHORT)
            except HostError as error:
                if "does not exist" not in str(error) and "No such process" not in str(error):
                    raise
        else:
            self._systemctl("stop", replica, timeout, check=False)

    def remove(self, path: str) -> None:
        """Remove a directory. A program that was killed may still write there for a moment."""
        for tries_left in (2, 1, 0):
            try:
                self.run(["rm", "-rf", "--one-file-system", "--", path], SHORT * 4)
            except HostError:
                if not tries_left or self.run(["ls", "-1A", self.directory], SHORT).find(path.rpartition("/")[2]) < 0:
                    raise
                self._wait(0.2)
            else:
                return

    def why(self, replica: ReplicaFiles) -> str:
        """The end of its log, for an error."""
        try:
            return " ".join(self.run(["tail", "-n", "3", f"{replica.path}/{LOG}"], SHORT).split())
        except HostError:
            return ""

    def free_port(self, address: str, ports: Sequence[int], taken: set[int]) -> int:
        for port in range(ports[0], ports[1] + 1):
            if port in taken:
                continue
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with socket.socket(family) as probe, suppress(OSError):
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address, port))
                return port
        raise Refused(f"no port of {address} is free between {ports[0]} and {ports[1]}; widen `ports`, or free some")

    def _systemctl(self, verb: str, replica: ReplicaFiles, timeout: float, check: bool = True) -> None:
        """The unit's instance is the path, escaped, so that %f in the unit is the path."""
        instance = self.run(["systemd-escape", "--path", f"--template={self._start}", replica.path], SHORT).strip()
        try:
            self.run(["systemctl", "--no-ask-password", verb, instance], timeout, as_user=False)
        except HostError:
            if check:
                raise

    def _tool(self, tools: str, name: str) -> str:
        return f"{tools}/{name}" if tools else name

    def run(self, argv: Sequence[str], timeout: float, text: str = "", as_user: bool = True) -> str:
        """Run a program to its end and return its output. It dies with this thread. Raises HostError."""
        try:
            getpwnam(self._user)
        except KeyError:
            raise Refused(f"there is no user {self._user!r}; install PostgreSQL, or name another in `user`") from None
        # Not Popen's user=: only setpriv can let the program die with us after it has changed its user.
        prefix = ["setpriv", f"--reuid={self._user}", f"--regid={self._user}", "--init-groups", "--pdeathsig=KILL"]
        pipe, name = subprocess.PIPE, argv[0].rpartition("/")[2]
        deadline = time.monotonic() + timeout
        with subprocess.Popen(
            [*prefix, *argv] if as_user else argv,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=ENVIRONMENT,
            cwd="/",
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            try:
                output, complaint = self._collect(process, text, deadline)
            except HostError as error:
                process.kill()
                raise HostError(f"{name}: {error}") from None
        if process.returncode:
            lines = [line for line in complaint.splitlines() if line.strip()] or [f"status {process.returncode}"]
            raise HostError(f"{name}: {' '.join(lines[-4:])}")
        return output

    def _collect(self, process: subprocess.Popen[str], text: str, deadline: float) -> tuple[str, str]:
        first: str | None = text
        while True:
            try:
                return process.communicate(first, timeout=LOOK)
            except subprocess.TimeoutExpired:
                first = None
            if time.monotonic() > deadline:
                raise HostError("did not end in time, and was ended")
            self._wait(0)


def quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")
