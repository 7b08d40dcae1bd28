"""Guests of a host, and hosts of a fleet: each a namespace and a cgroup, with real servers in it.

with Database(guest) as database, database.busy():
    ...     # a hundred transactions a second
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from groups import Group
from hosts import until
from topology import Host, Topology

EXPORTER_PORT = 9187  # of prometheus-postgres-exporter
UPDATES = 'pg_stat_database_tup_updated{datname="postgres"}'  # 300 a second while the database is busy
DATABASE = "postgres"


class Guest:
    """`host` is its namespace, `outside` the end of its veth on the host that it is a guest of, if it is one."""

    def __init__(self, host: Host, outside: str = "") -> None:
        self.host, self.outside = host, outside
        self.group = Group(host.name)

    @classmethod
    def of(cls, net: Topology, gateway: Host, name: str, prefix: str) -> Guest:
        """A guest of a gateway, by a link of its own."""
        host = net.host(name)
        outside, _ = net.link(gateway, host, ipv4=prefix)
        host.ip(f"route add default via {gateway_of(prefix)}")
        return cls(host, outside)

    @property
    def address(self) -> str:
        return self.host.ipv4

    def start(self, *argv: str, user: str = "root", **more: Any) -> subprocess.Popen[Any]:
        """Start a command in its namespace and cgroup."""
        inside = ("nsenter", f"--net=/run/netns/{self.host.namespace}")
        return self.group.start(*argv, prefix=(*inside, *as_user(user)), **more)


def seeing_cgroups(host: Host) -> None:
    """What runs on the host sees /sys as it is: `ip netns exec` mounts it anew, without the cgroups."""
    host.argv = lambda *argv: ["nsenter", f"--net=/run/netns/{host.namespace}", *argv]  # type: ignore[method-assign]


def gateway_of(prefix: str) -> str:
    """`Topology.link` gives the gateway the first address."""
    return str(next(ip_network(prefix).hosts()))


def as_user(user: str) -> tuple[str, ...]:
    return ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups")


class Database:
    """PostgreSQL with files of its own, and its real exporter, in a guest."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
        # The server's user cannot look into root's temporary directories.
        self.directory = Path(tempfile.mkdtemp(prefix="scentd-database-", dir="/var/tmp"))
        shutil.chown(self.directory, DATABASE, DATABASE)

    def __enter__(self) -> Database:
        data = str(self.directory / "data")
        self._run("initdb", "-D", data, "-A", "trust", "--no-sync", "--locale=C")
        settings = ("fsync=off", "listen_addresses=", f"unix_socket_directories={self.directory}")
        self._server = self._start("postgres", "-D", data, *(word for each in settings for word in ("-c", each)))
        until(lambda: self._run("pg_isready", "-h", self.directory, check=False) == 0, "PostgreSQL answers", 30)
        self._run("pgbench", "-q", "-i", "-h", self.directory)
        name = f"host={self.directory} user={DATABASE} dbname={DATABASE} sslmode=disable"
        listen = f"--web.listen-address={self.guest.address}:{EXPORTER_PORT}"
        exporter = ("env", f"DATA_SOURCE_NAME={name}", "prometheus-postgres-exporter", listen)
        self.guest.start(*exporter, user=DATABASE, stderr=subprocess.DEVNULL)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.send_signal(signal.SIGINT)
        self._server.wait()
        shutil.rmtree(self.directory)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """A hundred transactions a second, of which each changes four tables."""
        clients = self._start("pgbench", "-n", "-h", str(self.directory), "-c", "4", "-R", "100", "-T", "600")
        try:
            yield
        finally:
            clients.send_signal(signal.SIGINT)
            clients.wait()

    def _start(self, program: str, *arguments: str) -> subprocess.Popen[Any]:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return self.guest.start(str(self.programs / program), *arguments, user=DATABASE, **quiet)

    def _run(self, program: str, *arguments: str | os.PathLike[str], check: bool = True) -> int:
        argv = [*as_user(DATABASE), str(self.programs / program), *map(str, arguments)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=self.directory)
        assert not check or done.returncode == 0, done.stderr
        return done.returncode
