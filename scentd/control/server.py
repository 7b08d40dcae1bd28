"""The control socket: one request line of JSON in, one or more lines of JSON out.

    {"command": "status"}                      -> one object
    {"command": "explain", "peer": "acme"}     -> one object
    {"command": "explain-profile", "network": "acme"}    -> one object
    {"command": "monitor"}                     -> one object per event, until the client goes
    {"command": "reload", "confirm": 60.0}     -> one object, when it is applied or refused (scentd/reload.py)
    {"command": "confirm"}                     -> one object
    {"command": "restore"}                     -> {}, when all that is ours is on the host again
    {"command": "revoke", "key": "...", "undo": false}    -> one object, when nothing of this key is accepted any more
    {"command": "release", "name": "acme", "seconds": 3600.0}    -> one object, when its quarantines are released
    {"command": "event", "report": {...}}      -> one object, when it counts (model.EventReport)
    {"command": "hold", "names": ["*"]}        -> one object: what is held ("resume": goes on with these, or all)

The last eight change something, so they are for root alone, or for the user of the daemon. A status takes a "limit" of
entries of each list, too (control/status.py). A wrong request gets {"error": "..."}.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from scentd.errors import HostError, ScentdError
from scentd.model import SCHEMA, EventReport

log = logging.getLogger(__name__)

REQUEST_MAX = 4096
TRIAL_MAX = 86400.0  # seconds
RELEASE_MAX = 30 * 86400.0  # seconds
CLIENTS_MAX = 32  # of those who may change something, and of all others: nobody else can keep root from confirming
BACKLOG = 1000  # events kept for a slow monitor; beyond them it gets a count of the missed ones
CHANGES = ("reload", "confirm", "restore", "revoke", "release", "event", "hold", "resume")


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    command: str
    peer: str = ""
    network: str = ""
    limit: int | None = None  # entries of a list; 0: all
    key: str = ""  # a public one
    undo: bool = False
    name: str = ""  # a peer's, an address or a prefix
    seconds: Annotated[float, Meta(gt=0.0, le=RELEASE_MAX)] = 3600.0
    report: EventReport | None = None
    names: list[str] = []  # of resources and peers
    confirm: Annotated[float, Meta(ge=0.0, le=TRIAL_MAX)] = 0.0  # seconds of trial; 0: none


class MonitorQueue(asyncio.Queue):
    """A monitor's events, and the number of those that it missed."""

    missed = 0


class Server:
    """Serves the socket. `answers`: command -> (coroutine) function of the Request that gives JSON-able data."""

    def __init__(self, path: str, group: str, answers: dict[str, Callable[[Request], object]]) -> None:
        self._path = Path(path)
        self._group = group
        self._answers = answers
        self._server: asyncio.Server | None = None
        self._monitors: set[MonitorQueue] = set()
        self._clients: dict[asyncio.StreamWriter, bool] = {}  # whether it may change something

    async def start(self) -> None:
        """Listen on the socket. Raises HostError, also if another scentd listens there."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            self._clear()
            self._server = await asyncio.start_unix_server(self._serve, self._path, limit=REQUEST_MAX)
            self.restrict(self._group)
        except OSError as error:
            raise HostError(f"daemon.control_socket {self._path}: {error.strerror or error}") from None

    async def stop(self) -> None:
        if self._server is None:
            return
        self._server.close()
        for writer in list(self._clients):
            writer.close()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    def publish(self, event: dict) -> None:
        """Pass an event to every monitor. A slow monitor loses the oldest one, and gets a count of its losses."""
        for queue in self._monitors:
            if queue.full():
                queue.get_nowait()
                queue.missed += 1
            queue.put_nowait(event)

    def _clear(self) -> None:
        """Remove the socket of a killed daemon. Raises HostError if a daemon listens on it."""
        if not self._path.exists():
            return
        if not self._path.is_socket():
            raise HostError(f"daemon.control_socket {self._path}: a file that is not a socket is in the way; remove it")
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self._path))
            except OSError:
                self._path.unlink()
                return
            running = f"another scentd is running, process {peer_of(probe)[0]}"
        raise HostError(f"daemon.control_socket {self._path}: {running}; stop it first")

    def restrict(self, group: str) -> None:
        """Let this group's members ask, too; "" for nobody. Raises HostError, and then nothing has changed."""
        try:
            number = grp.getgrnam(group).gr_gid if group else os.getegid()
        except KeyError:
            raise HostError(f"daemon.control_group: no group {group!r}; make it with groupadd") from None
        try:
            os.chown(self._path, -1, number)
            os.chmod(self._path, 0o660 if group else 0o600)
        except OSError as error:
            raise HostError(f"daemon.control_socket {self._path}: {error.strerror}") from None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        may_change = peer_user(writer) in (0, os.geteuid())
        full = sum(one == may_change for one in self._clients.values()) >= CLIENTS_MAX
        self._clients[writer] = may_change
        try:
            if full:
                await self._write(writer, {"error": f"{CLIENTS_MAX} clients ask already; try again"})
            else:
                await self._answer(reader, writer, may_change)
        except (TimeoutError, ConnectionError):
            log.debug("a client of the control socket went")
        finally:
            del self._clients[writer]
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, may_change: bool) -> None:
        try:
            line = await asyncio.wait_for(reader.readuntil(b"\n"), 10)
            request = msgspec.json.decode(line, type=Request)
        except (
            asyncio.LimitOverrunError,
            asyncio.IncompleteReadError,
            msgspec.MsgspecError,
            UnicodeDecodeError,
        ) as error:
            await self._write(writer, {"error": f"bad request: {error}"})
            return
        if request.command in CHANGES and not may_change:
            await self._write(writer, {"error": f"{request.command}: only root may do this"})
        elif request.command == "monitor":
            await self._monitor(writer)
        elif request.command in self._answers:
            try:
                answer = self._answers[request.command](request)
                answer = await answer if asyncio.iscoroutine(answer) else answer
            except ScentdError as error:
                answer = {"error": str(error)}
            await self._write(writer, answer)
        else:
            known = ", ".join([*self._answers, "monitor"])
            await self._write(writer, {"error": f"unknown command {request.command!r}; known: {known}"})

    async def _monitor(self, writer: asyncio.StreamWriter) -> None:
        queue = MonitorQueue(BACKLOG)
        self._monitors.add(queue)
        try:
            while not writer.is_closing():
                await self._write(writer, await queue.get())
                if queue.missed:
                    missed, queue.missed = queue.missed, 0
                    await self._write(writer, {"schema": SCHEMA, "event": "missed", "count": missed})
        finally:
            self._monitors.discard(queue)

    @staticmethod
    async def _write(writer: asyncio.StreamWriter, data: object) -> None:
        writer.write(msgspec.json.encode(data) + b"\n")
        await writer.drain()


def peer_user(writer: asyncio.StreamWriter) -> int:
    """The user id of the other end."""
    return peer_of(writer.get_extra_info("socket"))[1]


def peer_of(end: socket.socket) -> tuple[int, int]:
    """(process id, user id) of the other end of a unix socket (SO_PEERCRED, unix(7))."""
    process, user, _ = struct.unpack("3i", end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return process, user
