"""A unix socket on which a sensor reports, a line at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from struct import Struct

from scentd.collect.lines import Input, Lines
from scentd.errors import HostError

MAX_CLIENTS = 16  # a sensor has one connection, or one for each of its threads
UCRED = Struct("=iII")  # pid, uid, gid (unix(7))

log = logging.getLogger(__name__)


class LineListener(Input):
    """One listening socket and its clients. `take` gets each line, on the loop's thread."""

    def __init__(self, path: str, take: Callable[[bytes], None]) -> None:
        self.take = take
        self.counters = {"too_long": 0, "clients": 0, "refused": 0}
        self._path = Path(path)
        self._clients: set[Client] = set()
        self._server: asyncio.Server | None = None
        self._socket_id: tuple[int, int] | None = None

    async def start(self) -> None:
        """Listen. Raises HostError if the path is not a socket, is another process's or cannot be made."""
        path = self._path
        sock = listening_socket(path)
        self._socket_id = file_id(path)
        self._server = await asyncio.get_running_loop().create_unix_server(lambda: Client(self), sock=sock)

    async def close(self) -> None:
        """Stop listening and remove the socket file, if start() made that file. May be called twice."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for client in list(self._clients):
            client.transport.abort()
        await server.wait_closed()
        path = self._path
        if self._socket_id is not None and file_id(path) == self._socket_id:
            path.unlink(missing_ok=True)

    def add_client(self, client: Client) -> bool:
        if len(self._clients) >= MAX_CLIENTS:
            self.counters["refused"] += 1
            return False
        self.counters["clients"] += 1
        self._clients.add(client)
        return True

    def remove_client(self, client: Client) -> None:
        self._clients.discard(client)


class Client(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, listener: LineListener) -> None:
        self._listener = listener
        self._lines = Lines()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if not self._listener.add_client(self):
            transport.abort()

    def data_received(self, data: bytes) -> None:
        before = self._lines.too_long
        lines = self._lines.feed(data)
        self._listener.counters["too_long"] += self._lines.too_long - before
        for line in lines:
            self._listener.take(line)

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.remove_client(self)


def listening_socket(path: Path) -> socket.socket:
    """A non-blocking stream socket that listens at `path`, in place of a stale one. Raises HostError.

    It is made under another name and renamed. So it appears with its mode and owner
    set, and replaces this process's older socket without a gap (reload).
    """
    check_free(path)
    new = path.with_name(f"{path.name}.{os.getpid()}")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        new.unlink(missing_ok=True)
        sock.bind(str(new))
        os.chmod(new, share_with_group(new))
        sock.listen(MAX_CLIENTS)
        new.rename(path)
    except OSError as error:
        sock.close()
        with contextlib.suppress(OSError):  # a name too long to bind is too long to remove
            new.unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise HostError(
            f"{path}: {reason}; `socket` needs a short path in a directory that exists and that scentd may write"
            " (unit: RuntimeDirectory=)"
        ) from None
    return sock


def share_with_group(path: Path) -> int:
    """The socket's mode: 0660 lets its directory's group connect (the sensor's group); 0600 if that is root's."""
    group = path.parent.stat().st_gid
    if group == 0:
        return 0o600
    if path.stat().st_gid != group:
        try:
            os.chown(path, -1, group)
        except PermissionError:
            log.warning("%s: may not give it to group %d; make the directory setgid (chmod g+s)", path.parent, group)
            return 0o600
    return 0o660


def check_free(path: Path) -> None:
    """Raises HostError if the path is no socket, or another process listens on it."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}; correct `socket`") from None
    if not stat.S_ISSOCK(mode):
        raise HostError(f"{path}: exists and is not a socket; remove it or choose another `socket`")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except OSError as error:
            raise HostError(f"{path}: in use ({error.strerror}); choose another `socket`") from None
        pid, _, _ = UCRED.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
    if pid != os.getpid():
        raise HostError(f"{path}: process {pid} listens there; stop it or choose another `socket`")


def file_id(path: Path) -> tuple[int, int] | None:
    """Device and inode; None without such a file."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
