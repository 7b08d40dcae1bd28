"""A real primary of PostgreSQL and a real HAProxy, with files of their own, on loopback."""

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path

from scentd.act.actuator import Tally
from scentd.act.resources.backend import BackendSetting
from scentd.act.resources.postgres import PostgresBackend
from scentd.act.resources.postgres_section import PostgresResource

USER = "postgres"
ROLE, PASSWORD = "scent", "not-a-secret"
SECONDS = 15.0


def until(condition, seconds=SECONDS):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Primary:
    def __init__(self):
        self.programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
        # The servers' user cannot look into root's temporary directories.
        self.directory = Path(tempfile.mkdtemp(prefix="scentd-replicas-", dir="/var/tmp"))
        shutil.chown(self.directory, USER, USER)
        self.data, self.port = self.directory / "data", free_port()
        self.run("initdb", "-D", self.data, "-A", "trust", "--no-sync", "--locale=C")
        self.hba = self.data / "pg_hba.conf"
        self.hba_text = "\n".join(
            f"host {name} {ROLE} 127.0.0.1/32 scram-sha-256" for name in ("postgres", "replication")
        )
        self.hba_text += "\nlocal all postgres trust\nlocal replication postgres trust\n"
        self.hba.write_text(self.hba_text)
        lines = (
            f"port={self.port}\nunix_socket_directories='{self.directory}'\nmax_connections=50\nmax_wal_senders=20\n"
        )
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(f"{lines}max_replication_slots=20\nfsync=off\n")
        self.passfile = self.directory / "passfile"
        self.passfile.write_text(f"*:*:*:{ROLE}:{PASSWORD}\n")
        self.passfile.chmod(0o600)
        shutil.chown(self.passfile, USER, USER)
        self.start()
        self.sql(f"CREATE ROLE {ROLE} LOGIN REPLICATION PASSWORD '{PASSWORD}' IN ROLE pg_read_all_stats")

    def as_user(self, program, *arguments):
        setpriv = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups")
        return [*setpriv, str(self.programs / program), *map(str, arguments)]

    def run(self, program, *arguments):
        done = subprocess.run(
            self.as_user(program, *arguments), cwd="/", timeout=SECONDS, check=True, capture_output=True, text=True
        )
        return done.stdout

    def start(self):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.server = subprocess.Popen(self.as_user("postgres", "-D", self.data), cwd="/", **quiet)
        until(
            lambda: subprocess.run(self.as_user("pg_isready", "-qh", self.directory, "-p", self.port)).returncode == 0
        )

    def stop(self, how=signal.SIGQUIT):
        self.server.send_signal(how)
        self.server.wait(SECONDS)

    def sql(self, text):
        return self.run("psql", "-XAtqh", self.directory, "-p", self.port, "-c", text).split()

    def reload_hba(self, text):
        self.hba.write_text(text)
        self.sql("SELECT pg_reload_conf()")

    def slots(self):
        return self.sql("SELECT slot_name FROM pg_replication_slots ORDER BY 1")

    def close(self):
        if self.server.poll() is None:
            self.stop()
        shutil.rmtree(self.directory)


class Haproxy:
    """A pool with eight servers `replica1` to `replica8`, and its front door."""

    def __init__(self, names=("reads",), level="admin"):
        self.directory = Path(tempfile.mkdtemp(prefix="scentd-haproxy-"))
        self.socket = self.directory / "socket"
        self.front = free_port()
        pools = "".join(
            f"backend {name}\n mode tcp\n server-template replica 1-8 127.0.0.1:1 check inter 500ms disabled\n"
            for name in names
        )
        self.file = self.directory / "haproxy.cfg"
        self.file.write_text(
            f"global\n stats socket {self.socket} mode 600 level {level}\n"
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n"
            f"frontend front\n bind 127.0.0.1:{self.front}\n default_backend {names[0]}\n{pools}"
        )
        self.start()

    def start(self):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(["haproxy", "-db", "-f", str(self.file)], **quiet)
        until(self.answers)

    def answers(self):
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def stop(self):
        self.process.kill()
        self.process.wait(SECONDS)
        self.socket.unlink(missing_ok=True)

    def close(self):
        self.stop()
        shutil.rmtree(self.directory)


class ReadPool:
    """Both, and back ends for them. At the end everything is gone."""

    def __init__(self):
        self.stack = ExitStack()
        self.primary = self.stack.enter_context(closing(Primary()))
        self.haproxy = self.stack.enter_context(closing(Haproxy()))
        self.replicas = self.primary.directory / "replicas"

    def section(self, **more):
        return PostgresResource(
            **{
                "name": "reads",
                "peer": "left",
                "maximum": 4.0,
                "conninfo": f"host=127.0.0.1 port={self.primary.port} user={ROLE} dbname=postgres",
                "passfile": str(self.primary.passfile),
                "directory": str(self.replicas),
                "ports": [26100, 26199],
                "haproxy_socket": str(self.haproxy.socket),
                "pool": "reads",
                "join_timeout": SECONDS,
                "grace": 5.0,
                **more,
            }
        )

    def backend(self, peers=("left",), **more):
        return PostgresBackend(
            self.section(**more), BackendSetting(dict.fromkeys(peers, ()), Path("/nowhere"), Tally())
        )

    def directories(self):
        return sorted(path.name for path in self.replicas.glob("*")) if self.replicas.exists() else []

    def clean(self):
        return not self.directories() and not self.primary.slots()

    def close(self):
        self.stack.close()
