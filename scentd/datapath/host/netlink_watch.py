"""A thread that calls back when the kernel says on a netlink socket that something has changed.

watch.py follows routes and interfaces, rule_watch.py removals from nftables.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from struct import Struct

log = logging.getLogger(__name__)

HEADER = Struct("=IH10x")  # struct nlmsghdr: length, type
BUFFER = 1 << 20  # bytes; an overflow counts as a change


def messages(data: bytes, least: int) -> Iterator[tuple[int, int]]:
    """(type, place) of each netlink message (linux/netlink.h). `least`: bytes of the shortest, with header."""
    at = 0
    while at + least <= len(data):
        length, kind = HEADER.unpack_from(data, at)
        yield kind, at
        at += max(length + 3 & ~3, least)


class NetlinkWatch:
    """A thread of its own that runs `callback` after each burst of changes, until stop().

    The socket belongs to the network namespace of the thread that makes the watch. An exception of
    `callback` is logged, and the watch goes on: the datapath does not stop for it. If it returns a number, it is
    called again after so many seconds, also without a change.
    """

    def __init__(self, name: str, family: int, groups: int, callback: Callable[[], object], debounce: float) -> None:
        """`groups`: bits of multicast groups; `debounce`: seconds from the first change to the call."""
        self.callback = callback
        self.debounce = debounce
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, family)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        self.socket.bind((0, groups))
        self.wake = os.eventfd(0)
        self.urgent = False  # the change may not wait
        self.thread = threading.Thread(target=self.run, name=name, daemon=True)

    def __enter__(self) -> NetlinkWatch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        """End the thread and wait for it; not to be called by `callback`."""
        os.eventfd_write(self.wake, 1)
        self.thread.join()
        self.socket.close()
        os.close(self.wake)

    def run(self) -> None:
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        poll.register(self.wake, select.POLLIN)
        due: float | None = None
        again: float | None = None
        while True:
            until = min((moment for moment in (due, again) if moment is not None), default=None)
            ready = poll.poll(None if until is None else max(0.0, until - time.monotonic()) * 1000)
            if any(fd == self.wake for fd, _ in ready):
                return
            if ready and self.read(parse=due is None) and due is None:
                due = time.monotonic() + self.debounce
            if self.urgent:
                due, self.urgent = time.monotonic(), False
            now = time.monotonic()
            if (due is not None and now >= due) or (again is not None and now >= again):
                due = None
                seconds = self.call()
                again = time.monotonic() + seconds if isinstance(seconds, float) else None

    def read(self, parse: bool) -> bool:
        """Empty the socket; whether there was a change. Without `parse` any message counts as one."""
        changed = False
        while True:
            try:
                data = self.socket.recv(1 << 16)
            except BlockingIOError:
                return changed
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                changed = True
                self.lose()
                continue
            self.look(data)
            changed = changed or not parse or self.is_change(data)

    def look(self, data: bytes) -> None:
        """Look at messages that are not parsed, too; may set `urgent`."""

    def lose(self) -> None:
        """Messages were lost."""

    def is_change(self, data: bytes) -> bool:
        """Whether these messages are a reason to call."""
        raise NotImplementedError

    def call(self) -> object:
        try:
            return self.callback()
        except Exception:  # the watch must still report the next change
            log.exception("%s: cannot follow a change; the next change is the next try", self.thread.name)
            return None
