"""The other end of the control socket, for the command line."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import msgspec

from scentd.control.status import Explanation, Status
from scentd.errors import HostError, ScentdError

TIMEOUT = 10.0


def ask(path: str, request: dict) -> dict:
    """One request, one answer. Raises ScentdError."""
    with _connected(path) as end:
        end.settimeout(TIMEOUT)
        return next(_lines(end, request))


def status(path: str, limit: int | None = None) -> Status:
    """The status document. Raises ScentdError."""
    return msgspec.convert(ask(path, {"command": "status", "limit": limit}), Status)


def explain(path: str, peer: str, limit: int) -> Explanation:
    """How a peer's policies stand. Raises ScentdError."""
    return msgspec.convert(ask(path, {"command": "explain", "peer": peer, "limit": limit}), Explanation)


def follow(path: str, request: dict) -> Iterator[dict]:
    """One request, answers until the daemon ends."""
    with _connected(path) as end:
        yield from _lines(end, request)


def _connected(path: str) -> socket.socket:
    end = socket.socket(socket.AF_UNIX)
    try:
        end.connect(path)
    except PermissionError:
        end.close()
        raise HostError(f"control socket {path}: permission denied; be root or in daemon.control_group") from None
    except OSError as error:
        end.close()
        hint = "is scentd running? (systemctl status scentd)"
        raise HostError(f"control socket {path}: {error.strerror}; {hint}") from None
    return end


def _lines(end: socket.socket, request: dict) -> Iterator[dict]:
    answered = False
    try:
        end.sendall(json.dumps(request).encode() + b"\n")
        with end.makefile("rb") as file:
            for line in file:
                answered = True
                answer = json.loads(line)
                if set(answer) == {"error"}:
                    raise ScentdError(answer["error"])
                yield answer
    except TimeoutError:
        raise ScentdError(f"no answer on the control socket within {TIMEOUT:.0f} s; see the daemon's log") from None
    except ConnectionError:
        answered = False
    if not answered:
        raise ScentdError("the daemon closed the control socket without an answer; see its log")
