"""A fleet whose network is in trouble: a busy database, somebody who guesses passwords, an application that sends too
much, each on a node of its own; and who is killed meanwhile.

    db1: PostgreSQL and its exporter    web1: an application in a cgroup    login: sshd
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compiled import bpffs
from fleet import INTERVAL, Fleet
from groups import sending
from guests import EXPORTER_PORT, UPDATES, Database, Guest, seeing_cgroups
from hosts import Node, start, until
from knocking import WRONG_PASSWORD, Sshd
from steady import steady
from topology import Topology

TROUBLE = {
    "database": 'has("role=db;metric=database_load;level=high")',
    "hog": 'has("role=web;metric=bandwidth_out;level=high")',
    "attack": "threat >= 0.5",
}
# Of other items 0.7 % seem to be in a filter: not twice in three profiles.
POLICY = {"do": {"kind": "command", "argv": ["/bin/true"]}, "matches": 2, "profiles": 3}
GAP_MAX = 2 * INTERVAL + 9  # seconds without a new profile: a bucket whose leader is killed stands still for up to 9


@dataclass
class Epochs:
    """The epochs that the verifier has had, as they came."""

    seen: list[int] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    last: float = 0.0

    def watch(self, fleet: Fleet, seconds: float) -> None:
        end = time.monotonic() + seconds
        self.last = self.last or time.monotonic()
        while time.monotonic() < end:
            newest = next(p["profile"] for p in fleet.v.status()["peers"] if p["name"] == "acme")["epoch"]
            if not self.seen or newest != self.seen[-1]:
                self.seen.append(newest)
                self.gaps.append(time.monotonic() - self.last)
                self.last = time.monotonic()
            time.sleep(0.1)


class TroubledFleet:
    """Context manager: all of it runs, and all is quiet."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = ExitStack()

    def __enter__(self) -> TroubledFleet:
        try:
            self._enter(self._stack)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _enter(self, stack: ExitStack) -> None:
        net = stack.enter_context(Topology("tf"))
        self.fleet = Fleet(net, self._directory, servers=3, collectors=("db1", "web1", "login"))
        db, web, login = self.fleet.collectors
        for node in (db, web):
            seeing_cgroups(node.host)
        self.guests = [stack.enter_context(self._guest(node)) for node in (db, web)]
        self.sshd = stack.enter_context(Sshd(self._directory / "sshd", 22, login.host.ipv4, run=self._on(login)))
        self.database = stack.enter_context(Database(self.guests[0]))
        self._configure(db, web, login)
        stack.enter_context(self.fleet.cluster)
        for node in self.fleet.nodes:
            stack.enter_context(node)
        start(*self.fleet.collectors, self.fleet.p1, *self.fleet.gateways, self.fleet.v, self.fleet.alloc)
        until(lambda: self.fleet.v.status()["peers"][0]["profile"], "the verifier has a profile", 40)
        start(self.fleet.p2)

    @contextmanager
    def _guest(self, node: Node) -> Iterator[Guest]:
        guest = Guest(node.host)
        with guest.group:
            yield guest

    @staticmethod
    def _on(node: Node) -> Any:
        return lambda argv: node.host.start(*argv)

    def _configure(self, db: Node, web: Node, login: Node) -> None:
        page = f"http://{db.host.ipv4}:{EXPORTER_PORT}/metrics"
        load = {"series": UPDATES, "rate": True, "full": 200.0, "metric": "database_load", "role": "db"}
        application = {"kind": "application", "capacity": "4mbit"}
        own = {
            db: [
                {"kind": "prometheus", "url": page, **load},
                application | {"cgroup": self.guests[0].group.name, "role": "db"},
            ],
            web: [application | {"cgroup": self.guests[1].group.name, "role": "web"}],
            login: [{"kind": "sshd", "file": str(self.sshd.log), "failures": 3, "hold": "60s"}],
        }
        for node, sources in own.items():
            node.sections["network"][0]["source"] = [{"kind": "cpu"}, *sources]
            pins = self._directory / f"{node.name}-bpf"
            node.sections["datapath"] = {"pin_dir": str(self._stack.enter_context(bpffs(pins)) / "scentd")}
        policies = [{"name": name, "when": when, **POLICY} for name, when in TROUBLE.items()]
        for node in (self.fleet.v, self.fleet.alloc):
            node.sections["policy"] = policies

    @contextmanager
    def trouble(self) -> Iterator[None]:
        """All three kinds at once."""
        hog = self.guests[1].start(*sending(self.fleet.brokers[0].ipv4, 1400, 0.001))
        inside = ("ip", "netns", "exec", self.fleet.alloc.host.namespace)
        with self.database.busy():
            for user in ("root", "admin", "oracle", "postgres"):
                if self.sshd.knock(user=user, password=WRONG_PASSWORD, prefix=inside) == 0:
                    raise AssertionError("a wrong password was right")
            yield
        hog.kill()
        hog.wait()

    @contextmanager
    def streams(self) -> Iterator[list[Any]]:
        """Datagrams of both gateways to the verifier, one family each."""
        with steady(self.fleet.g1, self.fleet.v, 4) as one, steady(self.fleet.g2, self.fleet.v, 6) as other:
            yield [one, other]

    def kill_a_broker(self) -> None:
        self.fleet.cluster.stop(self.fleet.brokers[0])

    def kill_the_active_profiler(self) -> None:
        self.fleet.p1.end(signal.SIGKILL)


def fired(node: Node) -> set[str]:
    return {p["policy"] for p in node.status()["allocation"]["policies"] if p["outcomes"].get("fired")}
