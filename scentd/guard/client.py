"""The other end of the guard's socket: for the daemon, its workers and commands. Calls block."""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec

from scentd.core.closed import Closed
from scentd.errors import HostError
from scentd.guard import orders
from scentd.state import durable

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
PATIENCE = 20.0  # seconds; tens of thousands of packets may have to go on


class GuardClient:
    """One connection to the guard of this network namespace. Without one nothing is held or kept closed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._end: socket.socket | None = None

    def connect(self) -> bool:
        self.close()
        end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        end.settimeout(PATIENCE)
        try:
            end.connect(self._path)
        except OSError:
            end.close()
            return False
        self._end = end
        try:
            if self.ask(orders.Tell()).namespace == orders.namespace():
                return True
            log.warning("the guard at %s serves another network namespace: set guard.socket", self._path)
        except HostError as error:
            log.warning("%s", error)
        self.close()
        return False

    def ask(self, order: orders.Order, fd: int | None = None) -> orders.Answer:
        """Give an order. Raises HostError if the guard is gone or refuses."""
        if self._end is None:
            raise HostError(f"no guard listens on {self._path}: systemctl start scentd-guard")
        try:
            socket.send_fds(self._end, [orders.encode(order)], [] if fd is None else [fd])
            answer = orders.decode_answer(self._end.recv(orders.MESSAGE_MAX))
        except (OSError, msgspec.MsgspecError) as error:
            self.close()
            raise HostError(f"the guard at {self._path} does not answer: {error}") from error
        if answer.error:
            raise HostError(f"the guard at {self._path}: {answer.error}")
        return answer

    def is_connected(self) -> bool:
        """Whether the guard is still there; nothing may be under way."""
        if self._end is None:
            return False
        poll = select.poll()
        poll.register(self._end, select.POLLIN)
        if not poll.poll(0):
            return True
        self.close()  # the guard sends nothing unasked: this was its end
        return False

    def close(self) -> None:
        if self._end is not None:
            self._end.close()
            self._end = None


class Holding:
    """Lets the guard hold a worker's queues, and the next guard if that one ends.

    A thread of its own talks to the guard, because the packet path must not wait for it.
    """

    def __init__(self, path: str) -> None:
        self.held = False  # the queues are the guard's, too, so nobody may unbind them
        self._client = GuardClient(path)
        self._queues: list[tuple[int, bool, int]] = []
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="guard", daemon=True)

    def hold(self, queues: Sequence[tuple[int, bool, int]]) -> None:
        """`queues`: number, whether it fails open, descriptor. They replace those of an earlier call."""
        self._queues = list(queues)
        self._wake.set()
        if not self._thread.is_alive():
            self._thread.start()

    def _run(self) -> None:
        told: list[tuple[int, bool, int]] = []
        while True:
            queues = self._queues
            if not self._client.is_connected():
                told, self.held = [], False
            if told != queues and (self._client.is_connected() or self._client.connect()) and self._tell(queues):
                told, self.held = queues, True
            self._wake.wait(LOOK_SECONDS)
            self._wake.clear()

    def _tell(self, queues: Sequence[tuple[int, bool, int]]) -> bool:
        try:
            for number, fail_open, fd in queues:
                self._client.ask(orders.Hold(number, fail_open), fd)
        except HostError as error:
            log.warning("%s", error)
            return False
        return True


def write_document(path: Path, closed: Closed | None) -> None:
    """Write the guard's orders so that a crash leaves the old or the new ones; None removes them. Raises HostError."""
    try:
        if closed is None:
            path.unlink(missing_ok=True)
            return
        durable.write(path, msgspec.json.encode(closed))
    except OSError as error:
        raise HostError(f"daemon.state_dir: {path}: {error.strerror}") from error
