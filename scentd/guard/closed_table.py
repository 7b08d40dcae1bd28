"""The guard's table in the kernel (its text: table.py), and the netlink socket that owns it.

Whoever has that socket may change the table; it goes when the last duplicate of the socket is closed. systemd keeps
one, so the next guard goes on with the table of the one before: the end of a table, as of every nftables base chain,
drops all packets that wait in queues of the namespace.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time

from scentd.core.closed import Closed
from scentd.errors import HostError
from scentd.guard import table
from scentd.system import notify
from scentd.system.nft import Nftables

STORED = f"table{table.LAYOUT}."  # before the table's name: the name of its socket in systemd's store


class ClosedTable:
    """What `make` and `adopt` return. `closed` is what it keeps closed; None: nothing."""

    def __init__(self, name: str, nft: Nftables) -> None:
        self.closed: Closed | None = None
        self._name = name
        self._nft = nft

    def write(self, closed: Closed | None, verifying: bool) -> None:
        """Keep this closed from now on, in one transaction. Raises HostError; then nothing has changed."""
        self._nft.run_text(table.update(self._name, closed, verifying))
        self.closed = closed

    def counts(self) -> dict[str, int]:
        """Packets by counter."""
        listed = self._nft.run([{"list": {"counters": {"family": "inet", "table": self._name}}}])
        found = [item["counter"] for item in listed if "counter" in item]
        return {c["name"]: c["packets"] for c in found if c["table"] == self._name}

    def remove(self) -> None:
        notify.remove_stored(STORED + self._name)
        self._nft.run_text(f"delete table inet {self._name}")
        self._nft.close()


def make(closed: Closed, verifying: bool) -> ClosedTable:
    """A new table. Its name is new each time, because a saved copy of it must not block a restore. Raises HostError."""
    name = f"scentd_closed_{time.monotonic_ns():x}"
    nft, owner = context()
    nft.run_text(table.create(name, closed, verifying))
    notify.store(STORED + name, owner)
    made = ClosedTable(name, nft)
    made.closed = closed
    return made


def adopt(stored: str, fd: int) -> ClosedTable | None:
    """The table of an earlier guard by what systemd kept of it, as it is; None if it is another version's or gone.

    Takes the descriptor unless it returns None. The caller knows what the table keeps closed.
    """
    if not stored.startswith(STORED):
        return None
    drain(fd)
    nft, own = context()
    os.dup2(fd, own, inheritable=False)  # the library goes on with the socket that owns the table
    found = ClosedTable(stored.removeprefix(STORED), nft)
    try:
        if set(found.counts()) != set(table.COUNTERS):
            raise HostError("it has gone")
    except HostError:
        nft.close()
        return None
    os.close(fd)
    return found


def context() -> tuple[Nftables, int]:
    """A context of the library, and its netlink socket: the library tells that one to nobody. One thread only."""
    before = sockets()
    nft = Nftables()
    (owner,) = sockets() - before
    return nft, owner


def sockets() -> set[int]:
    """The descriptors of this process that are sockets."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                found.add(int(name))
    return found


def drain(fd: int) -> None:
    """Read what the kernel has answered to a guard that is no more."""
    with socket.socket(fileno=os.dup(fd)) as end, contextlib.suppress(BlockingIOError):
        while True:
            end.recv(1 << 16, socket.MSG_DONTWAIT)
