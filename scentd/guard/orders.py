"""What the daemon, its workers and commands ask of the guard, and its answers: one JSON message each (SOCK_SEQPACKET).

An order belongs to the connection that it came by. What is `held` for a connection is orphaned when that connection
ends; the daemon's own connection says that somebody verifies.
"""

from __future__ import annotations

import os

import msgspec
from msgspec import Struct

MESSAGE_MAX = 1 << 16  # bytes
STATE_FILE = "closed.json"  # in daemon.state_dir: the document of core/closed.py


class Hold(Struct, frozen=True, tag=True):
    """Keep this queue bound; one descriptor comes with it."""

    queue: int
    fail_open: bool


class Look(Struct, frozen=True, tag=True):
    """Read the document again: it has changed, or is gone, which opens everything."""


class Verifying(Struct, frozen=True, tag=True):
    """For as long as this connection lasts somebody verifies: no exceptions meanwhile."""


class Release(Struct, frozen=True, tag=True):
    """Give orphaned queues up: `queues`, or all.

    What waits in them goes through its hooks again, if the rules lead elsewhere now (`repeat`); or it meets `fail`.
    """

    queues: tuple[int, ...] = ()
    repeat: bool = True


class Tell(Struct, frozen=True, tag=True):
    """Answer only."""


Order = Hold | Look | Verifying | Release | Tell


class Answer(Struct, frozen=True):
    """To every order: how the guard stands after it."""

    error: str = ""  # the order was not carried out
    namespace: int = 0  # the network namespace that it serves: the inode of /proc/thread-self/ns/net
    closed: bool = False  # a table is in place
    verifying: bool = False
    orphans: dict[int, float] = {}  # queues that nobody reads -> seconds for which they have waited
    waiting: int = 0  # packets in them
    released: int = 0  # packets, since the guard's start
    given_up: int = 0  # packets that waited too long, and met `fail`
    dropped: int = 0  # unverified packets of strict peers
    excepted: int = 0  # those that came in by exception


def namespace() -> int:
    """The network namespace of this process."""
    return os.stat("/proc/thread-self/ns/net").st_ino


encode = msgspec.json.encode
decode_order = msgspec.json.Decoder(Order).decode
decode_answer = msgspec.json.Decoder(Answer).decode
