"""The guard: a small process that outlives every stop and crash of the daemon, for what must outlive them.

It owns the table that keeps closed what is closed (table.py), by the last good configuration, from the boot on. It
holds the queues' sockets (held.py), so that packets wait while a daemon restarts, HOLD_SECONDS at most: then `fail`
decides. Its own descriptors lie in systemd's store, so that it may be killed as well. One thread, no configuration.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import time
from pathlib import Path

import msgspec

from scentd.core.closed import Closed
from scentd.errors import HostError
from scentd.guard import closed_table, orders
from scentd.guard.closed_table import ClosedTable
from scentd.guard.held import HeldQueue, queue_states
from scentd.system import nfnetlink, notify

log = logging.getLogger("scentd.guard")

HOLD_SECONDS = 5.0  # a daemon that does not come back must be no black hole
CONNECTIONS_MAX = 256


class Guard:
    """Serves until `stop` is called. Raises HostError if the socket or the table cannot be made."""

    def __init__(self, socket_path: str, state_path: str) -> None:
        self._state_path = Path(state_path)
        self._listener = listen(socket_path)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._wake, self._stopper = socket.socketpair()
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._owners: dict[socket.socket, list[HeldQueue]] = {}  # by connection
        self._orphans: list[HeldQueue] = []
        self._verifying: set[socket.socket] = set()
        self._table: ClosedTable | None = None
        self._settle_at: float | None = None  # when an earlier guard's table must fit: its daemon has come until then
        self._released = self._given_up = 0

    def start(self) -> None:
        """Go on with what an earlier guard has kept closed and held, or close what the document says."""
        others = []
        for name, fd in notify.take_stored():
            kind, _, rest = name.partition(".")
            if kind == "queue":
                number, _, fail = rest.partition(".")
                held = HeldQueue(int(number), fail == "open", fd)
                held.orphaned_at = time.monotonic()  # its worker may be alive, and hold it anew
                self._orphans.append(held)
            elif self._table is None and (adopted := closed_table.adopt(name, fd)):
                self._table, self._settle_at = adopted, time.monotonic() + HOLD_SECONDS
            else:
                others.append((name, fd))
        if self._table is None:
            self._look()
        else:
            self._table.closed = read_document(self._state_path)
        for name, fd in others:  # only now, so that nothing was open in between
            notify.remove_stored(name)
            os.close(fd)
        notify.notify("READY=1", f"STATUS={self._describe()}")

    def run(self) -> None:
        while True:
            ready = self._selector.select(self._timeout(time.monotonic()))
            for key, _ in ready:
                if key.fileobj is self._wake:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    assert isinstance(key.fileobj, socket.socket)  # we registered nothing else
                    self._serve(key.fileobj)
            self._give_up(time.monotonic())
            self._settle(time.monotonic())

    def _timeout(self, now: float) -> float | None:
        """Seconds until there is something to do without an order; None: never."""
        due = [q.orphaned_at + HOLD_SECONDS - now for q in self._orphans if q.orphaned_at is not None]
        due += [self._settle_at - now] if self._settle_at is not None else []
        return max(0.0, min(due)) if due else None

    def _settle(self, now: float) -> None:
        """No daemon has come for an earlier guard's table; and a table that keeps nothing closed goes when it may."""
        if self._settle_at is not None and now >= self._settle_at:
            self._look()
        if self._table is not None and not self._settle_at and not self._table.closed and not queue_states():
            self._table.remove()
            self._table = None

    def stop(self) -> None:
        self._stopper.send(b"\0")

    # -- connections -----------------------------------------------------

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        if len(self._owners) >= CONNECTIONS_MAX:
            log.warning("more than %d connections: one refused", CONNECTIONS_MAX)
            connection.close()
            return
        connection.setblocking(False)
        self._owners[connection] = []
        self._selector.register(connection, selectors.EVENT_READ)

    def _serve(self, connection: socket.socket) -> None:
        """One order. Whoever sends anything else is cut off."""
        try:
            data, fds, flags, _ = socket.recv_fds(connection, orders.MESSAGE_MAX, 1)
        except BlockingIOError:
            return
        except OSError:
            data, fds, flags = b"", [], 0
        if not data or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            self._end(connection, fds)
            return
        try:
            order = orders.decode_order(data)
            if bool(fds) != isinstance(order, orders.Hold):
                raise msgspec.ValidationError("descriptors belong to Hold, one to each")
        except msgspec.MsgspecError as error:
            log.warning("an order that cannot be read: %s", error)
            self._end(connection, fds)
            return
        refused = ""
        try:
            self._carry_out(order, connection, fds)
        except HostError as refusal:
            log.error("%s", refusal)
            refused = str(refusal)
        try:
            connection.send(orders.encode(self._answer(refused)))
        except OSError:  # it does not wait for the answer
            self._end(connection, [])
        notify.notify(f"STATUS={self._describe()}")

    def _end(self, connection: socket.socket, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        self._selector.unregister(connection)
        connection.close()
        self._orphan(self._owners.pop(connection))
        if connection in self._verifying:
            self._verifying.discard(connection)
            if not self._verifying:
                log.info("nobody verifies now%s", ": what is closed stays closed" if self._closed else "")
                self._write()

    # -- orders ----------------------------------------------------------

    def _carry_out(self, order: orders.Order, connection: socket.socket, fds: list[int]) -> None:
        match order:
            case orders.Hold():
                self._hold(connection, HeldQueue(order.queue, order.fail_open, fds[0]))
            case orders.Look():
                self._look()
            case orders.Verifying():
                self._verifying.add(connection)
                self._write()
            case orders.Release():
                self._release(order)

    def _hold(self, connection: socket.socket, held: HeldQueue) -> None:
        """Of a queue that is held already the new descriptor counts: its worker has outlived an earlier guard."""
        for queues in (self._orphans, *self._owners.values()):
            for before in [q for q in queues if q.number == held.number]:
                queues.remove(before)
                before.close()
        self._owners[connection].append(held)
        notify.remove_stored(stored_name(held))
        notify.store(stored_name(held), held.socket.fileno())

    def _orphan(self, queues: list[HeldQueue]) -> None:
        for held in queues:
            held.orphan(time.monotonic())
            self._orphans.append(held)

    def _release(self, order: orders.Release) -> None:
        read = {q.number for queues in self._owners.values() for q in queues}
        for held in [q for q in self._orphans if not order.queues or q.number in order.queues]:
            verdict = nfnetlink.REPEAT if order.repeat else held.fail_verdict
            count = held.release(verdict, time.monotonic() + HOLD_SECONDS, read)
            self._released += count
            self._forget(held)
            log.info("queue %d: %d packets that waited went on", held.number, count)

    def _give_up(self, now: float) -> None:
        for held in [q for q in self._orphans if q.orphaned_at is not None and now >= q.orphaned_at + HOLD_SECONDS]:
            count = held.release(held.fail_verdict, now)
            self._given_up += count
            self._forget(held)
            passed = "passed as they are" if held.fail_open else "dropped"
            log.warning("queue %d: no daemon for %.0f s; %d packets %s", held.number, HOLD_SECONDS, count, passed)

    def _forget(self, held: HeldQueue) -> None:
        self._orphans.remove(held)
        notify.remove_stored(stored_name(held))
        held.close()

    # -- the table -------------------------------------------------------

    @property
    def _closed(self) -> Closed | None:
        return self._table.closed if self._table is not None else None

    def _look(self) -> None:
        """Make the table fit the document. Raises HostError if it cannot be read; then the table stays.

        A table that keeps nothing closed stays as long as there are queues: its end would drop what is in them.
        """
        self._settle_at = None
        closed, before = read_document(self._state_path), self._closed
        if self._table is not None:
            self._table.write(closed, bool(self._verifying))
        elif closed is not None:
            self._table = closed_table.make(closed, bool(self._verifying))
        if closed is None and before is not None:
            log.warning("nothing is kept closed any more")
        elif closed is not None and before is None:
            log.info("closed: what strict peers send and nobody has verified is dropped")

    def _write(self) -> None:
        if self._table is not None and self._table.closed is not None:
            self._table.write(self._table.closed, bool(self._verifying))

    def _describe(self) -> str:
        verifying = "a daemon verifies" if self._verifying else "nobody verifies"
        return f"{'closed' if self._closed else 'open'}, {verifying}"

    def _answer(self, error: str) -> orders.Answer:
        now = time.monotonic()
        states = [(q, q.state) for q in self._orphans]
        counts = self._table.counts() if self._table is not None else {}
        return orders.Answer(
            error=error,
            namespace=orders.namespace(),
            closed=self._closed is not None,
            verifying=bool(self._verifying),
            orphans={q.number: now - q.orphaned_at for q in self._orphans if q.orphaned_at is not None},
            waiting=sum(state.waiting for _, state in states if state is not None),
            released=self._released,
            given_up=self._given_up,
            dropped=counts.get("dropped", 0),
            excepted=counts.get("excepted", 0),
        )


def listen(path: str) -> socket.socket:
    """The listening socket, for root alone. Raises HostError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    before = os.umask(0o177)
    try:
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as probe:
            if probe.connect_ex(path) == 0:
                raise HostError(f"{path}: another guard listens here; one is enough for a host")
        Path(path).unlink(missing_ok=True)
        listener.bind(path)
    except OSError as error:
        raise HostError(f"guard.socket: {path}: {error.strerror}; its directory must exist") from error
    finally:
        os.umask(before)
    listener.listen(64)
    return listener


def read_document(path: Path) -> Closed | None:
    """The guard's orders, None without any. Raises HostError: what cannot be read must not open."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Closed)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}; a start of scentd writes it anew") from error
    except msgspec.MsgspecError as error:
        raise HostError(f"{path}: {error}; a start of scentd writes it anew, `scentd cleanup` removes it") from error


def stored_name(held: HeldQueue) -> str:
    return f"queue.{held.number}.{'open' if held.fail_open else 'closed'}"


def run(socket_path: str, state_path: str) -> None:
    """Serve until TERM or INT. Raises HostError."""
    guard = Guard(socket_path, state_path)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: guard.stop())
    guard.start()
    guard.run()
