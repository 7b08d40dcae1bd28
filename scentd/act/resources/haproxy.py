"""A backend of HAProxy as a pool of servers, by its runtime API (HAProxy's management guide, 9.3).

The servers are declared in haproxy.cfg, by `server-template PREFIX 1-N 127.0.0.1:1 disabled`; here they get their
addresses. Connections of clients stay when a server drains; new ones go to the others.
"""

from __future__ import annotations

import csv
import io
import socket
from dataclasses import dataclass

from scentd.act.resources.backend import Refused
from scentd.errors import HostError

ANSWER_MAX = 4_000_000  # bytes; a pool of thousands of servers answers with some hundred kilobytes
RUNS = "2"  # srv_op_state: the server is up
MAINTENANCE = 1  # the bit of srv_admin_state that the runtime API sets
BY_FILE = 4  # the bit that only says that haproxy.cfg has it `disabled`; it stays when the server is ready
WAY_OUT = {
    "permission denied": "write `stats socket PATH mode 600 level admin` into haproxy.cfg",
    "no such backend": "name a backend of haproxy.cfg in `pool`",
    "can't find backend": "name a backend of haproxy.cfg in `pool`",
    "no such server": "write `server-template PREFIX 1-N 127.0.0.1:1 disabled` into that backend, N = maximum",
    "require": "see HAProxy's log",
}


@dataclass(frozen=True, slots=True)
class PoolServer:
    """One server of the pool."""

    address: str
    port: int
    idle: bool  # in maintenance: it takes nobody
    serves: bool  # up, and takes new connections


class HaproxyPool:
    """One backend. Raises HostError if HAProxy does not answer, Refused if it does not want to."""

    def __init__(self, path: str, backend: str, prefix: str, timeout: float) -> None:
        self._path, self._backend, self._prefix, self._timeout = path, backend, prefix, timeout

    def servers(self) -> dict[int, PoolServer]:
        """By number the servers with our prefix. Raises Refused if there is none."""
        _version, _, text = self._ask(f"show servers state {self._backend}").partition("# ")
        found = {}
        for row in csv.DictReader(io.StringIO(text), delimiter=" "):
            name, number = row["srv_name"], row["srv_name"].removeprefix(self._prefix)
            if name.startswith(self._prefix) and number.isdecimal():
                state = int(row["srv_admin_state"])
                serves = not state & ~BY_FILE and row["srv_op_state"] == RUNS
                idle = bool(state & MAINTENANCE)
                found[int(number)] = PoolServer(row["srv_addr"], int(row["srv_port"]), idle, serves)
        if not found:
            raise self._refusal("no such server", f"{self._prefix}1")
        return found

    def sessions(self) -> dict[int, int]:
        """By number of server its sessions now."""
        rows = csv.DictReader(io.StringIO(self._ask(f"show stat {self._backend} 4 -1").removeprefix("# ")))
        ours = [(row["svname"].removeprefix(self._prefix), row) for row in rows if row["pxname"] == self._backend]
        return {int(number): int(row["scur"]) for number, row in ours if number.isdecimal()}

    def join(self, number: int, address: str, port: int) -> None:
        self._set(number, f"addr {address} port {port}")
        self._set(number, "state ready")

    def drain(self, number: int) -> None:
        """Nobody new; who is there stays."""
        self._set(number, "state drain")

    def leave(self, number: int) -> None:
        """Nobody: sessions that are left end."""
        self._set(number, "state maint")
        self._ask(f"shutdown sessions server {self._backend}/{self._prefix}{number}")

    def _set(self, number: int, what: str) -> None:
        """HAProxy is silent when it has done it, but for a new address, which it confirms."""
        name = f"{self._backend}/{self._prefix}{number}"
        answer = self._ask(f"set server {name} {what}")
        if answer and not (what.startswith("addr") and ("changed from" in answer or "no need to change" in answer)):
            raise self._refusal(answer, f"{self._prefix}{number}")

    def _ask(self, command: str) -> str:
        answer = bytearray()
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(self._timeout)
                connection.connect(self._path)
                connection.sendall(command.encode() + b"\n")
                while (data := connection.recv(65536)) and len(answer) < ANSWER_MAX:
                    answer += data
        except OSError as error:
            why = error.strerror or error
            raise HostError(f"haproxy at {self._path}: {why}; is it running, and is that its `stats socket`?") from None
        text = answer.decode(errors="replace").strip()
        if text.lower().startswith(("permission denied", "no such", "can't find", "unknown command")):
            raise self._refusal(text, self._prefix)
        return text

    def _refusal(self, answer: str, server: str) -> Refused:
        way_out = next((way for words, way in WAY_OUT.items() if words in answer.lower()), "see HAProxy's log")
        return Refused(f"haproxy at {self._path}, {self._backend}/{server}: {answer}: {way_out}")
