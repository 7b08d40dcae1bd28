"""The other end of the guard's socket: for the daemon, its workers and commands. Calls block."""

from __future__ import annotations

import logging
import os
import select
import socket
from collections.abc import Sequence
from pathlib import Path

import msgspec

from scentd.core.closed import Closed
from scentd.errors import HostError
from scentd.guard import orders

log = logging.getLogger(__name__)

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
    """Lets the guard hold a worker's queues, and the next guard if that one ends."""

    def __init__(self, path: str) -> None:
        self._client = GuardClient(path)
        self._queues: Sequence[tuple[int, bool, int]] = ()
        self._told = False

    def hold(self, queues: Sequence[tuple[int, bool, int]]) -> None:
        """`queues`: number, whether it fails open, descriptor. They replace those of an earlier call."""
        if list(queues) != list(self._queues):
            self._queues, self._told = queues, False
            self.keep()

    def keep(self) -> bool:
        """Now and then: whether the queues are held. Never raises: packets go on without a guard."""
        if self._client.is_connected():
            if self._told:
                return True
        elif not self._client.connect():
            return False
        try:
            for number, fail_open, fd in self._queues:
                self._client.ask(orders.Hold(number, fail_open), fd)
        except HostError as error:
            log.warning("%s", error)
            self._client.close()
            return False
        self._told = bool(self._queues)
        return self._told


def write_document(path: Path, closed: Closed | None) -> None:
    """Write the guard's orders so that a crash leaves the old or the new ones; None removes them. Raises HostError."""
    try:
        if closed is None:
            path.unlink(missing_ok=True)
            return
        new = path.with_suffix(".new")
        with open(new, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(msgspec.json.encode(closed))
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError as error:
        raise HostError(f"daemon.state_dir: {path}: {error.strerror}") from error
