"""A netfilter queue that stays bound while nobody reads it, because the guard holds a duplicate of its socket.

Packets wait in it until a new daemon's rules lead to other queues; then each goes through its hook again, and so into
the new queue. Deleting any nftables base chain in the namespace would drop all that wait.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from scentd.system import nfnetlink

log = logging.getLogger(__name__)

QUEUES = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")
WAITING_MAX = 65536  # packets that wait at most, once nobody reads: 10,000 a second for the time of a start
BUFFER = 64 << 20  # bytes; a message without the packet takes less than 1 KB of it
BATCH = 512  # packets that go through their hook again at once: what takes them up is read by one process
PAUSE = 0.002  # seconds


class QueueState(NamedTuple):
    """What the kernel says of one queue (struct nfqnl_instance)."""

    port: int  # the netlink port that owns it
    waiting: int
    refused: int  # packets that found it, or its reader's socket, full and were dropped
    last_id: int


def queue_states() -> dict[int, QueueState]:
    """All queues of this network namespace, by number."""
    try:
        lines = QUEUES.read_text().splitlines()
    except FileNotFoundError:  # the kernel has no queues loaded
        return {}
    rows = ([int(word) for word in line.split()] for line in lines)
    return {row[0]: QueueState(row[1], row[2], row[5] + row[6], row[7]) for row in rows}


def longest(queues: Collection[int]) -> int:
    """Packets that wait in the fullest of these queues."""
    return max((state.waiting for number, state in queue_states().items() if number in queues), default=0)


class HeldQueue:
    """One queue's duplicate. `orphaned_at` is the monotonic time at which its reader went; None: it is read."""

    def __init__(self, number: int, fail_open: bool, fd: int) -> None:
        self.number = number
        self.fail_open = fail_open
        self.socket = socket.socket(fileno=fd)
        self.orphaned_at: float | None = None

    @property
    def state(self) -> QueueState | None:
        """None if somebody has unbound the queue."""
        state = queue_states().get(self.number)
        return state if state is not None and state.port == self.socket.getsockname()[0] else None

    def orphan(self, now: float) -> None:
        """Nobody reads any more: let more packets wait, and copy nothing of them into the socket's buffer."""
        self.orphaned_at = now
        if self.state is None:
            return
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.SOL_SOCKET, nfnetlink.SO_RCVBUFFORCE, BUFFER)
        self.socket.setsockopt(nfnetlink.SOL_NETLINK, nfnetlink.NETLINK_NO_ENOBUFS, 1)
        settings = nfnetlink.max_length(WAITING_MAX), nfnetlink.copy(0, nfnetlink.COPY_META)
        self.socket.send(nfnetlink.config(self.number, *settings))
        log.info("queue %d: nobody reads it; its packets wait", self.number)

    def release(self, verdict: int, deadline: float, read: Collection[int] = ()) -> int:
        """Give all waiting packets this verdict, in order; return their number.

        Repeated ones go in batches, each when the queues that are `read` have taken up the one before. What is left at
        the deadline meets `fail`: the rules lead here again.
        """
        released = 0
        while (state := self.state) is not None and state.waiting:
            batch = state.waiting
            if verdict == nfnetlink.REPEAT and time.monotonic() >= deadline:
                verdict = self.fail_verdict
            elif verdict == nfnetlink.REPEAT:
                batch = min(batch, BATCH)
            last = state.last_id - (state.waiting - batch) & 0xFFFFFFFF
            self.socket.send(nfnetlink.verdict_on_all(self.number, last, verdict))
            released += batch
            while time.monotonic() < deadline and longest(read) > BATCH:
                time.sleep(PAUSE)
        return released

    @property
    def fail_verdict(self) -> int:
        return nfnetlink.ACCEPT if self.fail_open else nfnetlink.DROP

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.close()
