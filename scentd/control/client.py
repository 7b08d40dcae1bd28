"""The other end of the control socket, for the command line."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress

import msgspec

from scentd.control.status import Status
from scentd.errors import HostError, ScentdError

TIMEOUT = 10.0
CHANGE_TIMEOUT = 120.0


def ask(path: str, request: dict) -> dict:
    """One request, one answer. Raises ScentdError."""
    with _connected(path) as end:
        end.settimeout(TIMEOUT)
        return next(_lines(end, request))


def status(path: str, limit: int | None = None) -> Status:
    """The status document. Raises ScentdError."""
    return msgspec.convert(ask(path, {"command": "status", "limit": limit}), Status)


def status_if_any(path: str, limit: int | None = None) -> Status | None:
    """The same; None if no daemon answers."""
    try:
        return status(path, limit)
    except ScentdError:
        return None


def change(path: str, request: dict) -> dict:
    """A request that changes the daemon, which may take a while. Raises ScentdError."""
    with _connected(path) as end:
        end.settimeout(CHANGE_TIMEOUT)
        return next(_lines(end, request))


def follow(path: str, request: dict) -> Iterator[dict]:
    """One request, answers until the daemon ends."""
    with _connected(path) as end:
        yield from _lines(end, request)


def answers(path: str) -> bool:
    """Whether a daemon runs, also one that hangs: its control socket takes connections. Raises HostError."""
    with socket.socket(socket.AF_UNIX) as end:
        end.settimeout(TIMEOUT)
        try:
            end.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError as error:
            raise HostError(f"control socket {path}: {error.strerror or error}") from None
    return True


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
        with suppress(BrokenPipeError):  # a daemon that has no time for the request has said so already
            end.sendall(json.dumps(request).encode() + b"\n")
        with end.makefile("rb") as file:
            for line in file:
                answered = True
                answer = json.loads(line)
                if set(answer) == {"error"}:
                    raise ScentdError(answer["error"])
                yield answer
    except TimeoutError:
        raise ScentdError("no answer on the control socket in time; see the daemon's log") from None
    except ConnectionError:
        answered = False
    if not answered:
        raise ScentdError("the daemon closed the control socket without an answer; see its log")
