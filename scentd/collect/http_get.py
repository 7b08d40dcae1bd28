"""One GET over HTTP or HTTPS, bounded in time and size, for sources.

http.client and not urllib.request: no proxy of the environment, no redirect and no other scheme can lead away from
the configured address, and with it a token.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from scentd.collect.source import CollectError

GZIP = b"\x1f\x8b"  # RFC 1952: how a compressed page begins


class HttpAnswer(NamedTuple):
    status: int
    content: bytes
    summary: str  # "HTTP 302 Found to http://other/"


class Limits(NamedTuple):
    timeout: float  # seconds to connect, and as many to answer
    size: int  # bytes
    way_out: str  # of an answer that is larger
    server: str  # what should listen there: "the exporter"


def get(url: str, where: str, headers: dict[str, str], limits: Limits) -> HttpAnswer:
    """What the server answers, whatever its status. `where` names it in errors. Raises CollectError."""
    parts = urlsplit(url)
    kind, port = {"http": (HTTPConnection, 80), "https": (HTTPSConnection, 443)}[parts.scheme]
    connection = kind(parts.hostname or "", parts.port or port, timeout=limits.timeout)
    expired = threading.Event()
    watchdog = None
    try:
        connection.connect()
        # A socket's timeout counts for each read: a server that trickles would hold the thread for ever.
        watchdog = threading.Timer(limits.timeout, shut, (connection.sock, expired))
        watchdog.daemon = True
        watchdog.start()
        connection.request("GET", target(parts), headers={**headers, "Connection": "close"})
        answer = read(connection.getresponse(), where, limits)
    except TimeoutError:
        raise slow(where, limits) from None
    except ssl.SSLCertVerificationError as error:
        raise CollectError(f"{where}: {error.verify_message}; add its authority to the system's trust store") from None
    except (OSError, HTTPException) as error:
        if expired.is_set():
            raise slow(where, limits) from None
        raise CollectError(f"{where}: {error or type(error).__name__}; does {limits.server} listen there?") from None
    finally:
        if watchdog is not None:
            watchdog.cancel()
        connection.close()
    if expired.is_set():  # the page ends where the watchdog cut it
        raise slow(where, limits)
    return answer


def target(parts: SplitResult) -> str:
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def read(response: HTTPResponse, where: str, limits: Limits) -> HttpAnswer:
    content = response.read(limits.size + 1)
    if content.startswith(GZIP) or response.headers.get("Content-Encoding", "identity") != "identity":
        raise CollectError(f"{where}: a compressed page, though a plain one was asked for; turn compression off there")
    if len(content) > limits.size:
        raise CollectError(f"{where}: more than {limits.size >> 20} MiB; {limits.way_out}")
    moved = f" to {response.headers['Location']}" if "Location" in response.headers else ""
    return HttpAnswer(response.status, content, f"HTTP {response.status} {response.reason}{moved}")


def slow(where: str, limits: Limits) -> CollectError:
    return CollectError(
        f"{where}: no complete answer within {limits.timeout:g} s; raise `timeout` or repair {limits.server}"
    )


def shut(sock: socket.socket, expired: threading.Event) -> None:
    """Shut the socket down, so that the reading thread sees the end of the stream."""
    expired.set()
    # OSError: the socket is closed already. SSLSocket's own shutdown would remove the session while the
    # other thread reads.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
