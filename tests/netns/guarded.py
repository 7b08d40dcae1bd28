"""A guard for a node: `scentd guard` in its namespace, with the document in the node's directory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from hosts import Node, environment, until

from scentd.errors import HostError
from scentd.guard import orders
from scentd.guard.client import GuardClient


class Guarded:
    """The guard of one node; `kill` and `start` give it a successor."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.socket = str(node.directory / "guard.sock")
        self.log = node.directory / "guard.log"
        self.process: subprocess.Popen | None = None
        node.sections["guard"] = {"socket": self.socket, **node.sections.get("guard", {})}

    def start(self) -> None:
        document = str(self.node.directory / orders.STATE_FILE)
        with open(self.log, "ab") as log:
            self.process = self.node.host.start(
                *(sys.executable, "-m", "scentd", "guard", "--listen", self.socket, "--document", document),
                env=environment(),
                stdout=log,
                stderr=log,
            )
        until(self.answers, f"the guard answers; its log:\n{self.log.read_text()}")

    def answers(self) -> bool:
        with suppress(HostError):
            return bool(self.tell().namespace)
        return False

    def tell(self) -> orders.Answer:
        """How it stands."""
        return self.node.host.call(ask, self.socket, orders.Tell())

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)
            self.process = None


def ask(path: str, order: orders.Order) -> orders.Answer:
    client = GuardClient(path)
    if not client.connect():
        raise HostError(f"no guard at {path}")
    try:
        return client.ask(order)
    finally:
        client.close()


@contextmanager
def guarded(*nodes: Node) -> Iterator[list[Guarded]]:
    guards = [Guarded(node) for node in nodes]
    try:
        for guard in guards:
            guard.start()
        yield guards
    finally:
        for guard in guards:
            guard.stop()
