"""Asks servers over HTTP/1.1, bounded in time and size: whether one answers, how long an object takes; fills a cache.

Times are measured from this host; from a given address of this host where `source` says so.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterable
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException, IncompleteRead
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scentd.act.resources.steer_table import End
    from scentd.prefix import Address

CHUNK = 65536
PROBLEMS = (OSError, HTTPException, ValueError)  # what a server, whatever it sends, can raise in http.client


class Fetched(NamedTuple):
    status: int
    size: int  # bytes of the body that were read
    seconds: float


def connect_seconds(end: End, limit: float, source: Address | None = None) -> float | None:
    """The time of a TCP connect, None without an answer within `limit` seconds. A refusal is an answer, too."""
    begun = time.monotonic()
    try:
        bind = (str(source), 0) if source is not None else None
        socket.create_connection((str(end.address), end.port), limit, bind).close()
    except ConnectionRefusedError:
        pass
    except OSError:
        return None
    return time.monotonic() - begun


def is_local(address: Address) -> bool:
    """Whether this host has the address."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        try:
            one.bind((str(address), 0))
        except OSError:
            return False
    return True


def answers(end: End, site: str, path: str, limit: float) -> bool:
    """Whether an HTTP server answers there, whatever its status."""
    with closing(connection(end, limit)) as server:
        try:
            ask(server, "HEAD", site, path, limit, 0)
        except PROBLEMS:
            return False
    return True


def fetch(end: End, site: str, path: str, limit: float, most: int) -> Fetched | None:
    """GET an object over a connection of its own, at most `most` bytes of it; None if that does not work."""
    begun = time.monotonic()
    with closing(connection(end, limit)) as server:
        try:
            status, size = ask(server, "GET", site, path, limit, most)
        except PROBLEMS:
            return None
    return Fetched(status, size, time.monotonic() - begun)


def warm(
    end: End, site: str, paths: Iterable[str], most: int, seconds: float, limit: float, stop: threading.Event
) -> tuple[int, int]:
    """GET the objects one after another, within `most` bytes and `seconds`; return (objects, bytes)."""
    until = time.monotonic() + seconds
    objects = total = 0
    with closing(connection(end, limit)) as server:
        for path in paths:
            left = min(limit, until - time.monotonic())
            if left <= 0 or total >= most or stop.is_set():
                break
            try:
                status, size = ask(server, "GET", site, path, left, most - total)
            except PROBLEMS:
                server.close()  # http.client connects anew for the next one
                continue
            objects += status in (200, 304)
            total += size
    return objects, total


def connection(end: End, limit: float) -> HTTPConnection:
    return HTTPConnection(str(end.address), end.port, timeout=limit)


def ask(server: HTTPConnection, verb: str, site: str, path: str, limit: float, most: int) -> tuple[int, int]:
    """(status, bytes of the body that were read). Raises one of PROBLEMS."""
    with cut_after(server, limit):
        server.putrequest(verb, path, skip_host=True)
        server.putheader("Host", site)
        server.putheader("User-Agent", "scentd")
        server.endheaders()
        answer = server.getresponse()
        size = 0
        while size < most:
            chunk = answer.read(min(CHUNK, most - size))
            if not chunk:
                break
            size += len(chunk)
        if size < most and answer.length:
            raise IncompleteRead(b"", answer.length)
        if not answer.isclosed():
            server.close()  # what was not read must not become the next answer
        return answer.status, size


@contextmanager
def cut_after(server: HTTPConnection, limit: float) -> Iterator[None]:
    """A timeout of the socket bounds each read alone; a server that sends byte by byte is cut here."""
    server.timeout = limit
    if server.sock is None:
        server.connect()
    end = server.sock
    end.settimeout(limit)

    late = threading.Event()

    def cut() -> None:
        late.set()
        with suppress(OSError):  # closed meanwhile
            end.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(limit, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    if late.is_set():  # what looks like the end of an answer was ours
        raise TimeoutError
