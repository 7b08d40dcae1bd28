"""Calls back when the host's routes, addresses or interfaces change, so that our table can follow.

Changes of our own table are not changes, unless somebody deletes from it (a network manager
that restarts takes foreign routes and rules away): then the answer is to write them again, and
a second look finds nothing to do.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from pyroute2.netlink import rtnl
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from scentd.config import Datapath
from scentd.datapath.routes import MAIN

log = logging.getLogger(__name__)

DEBOUNCE = 0.2  # seconds from the first change to the call: one interface makes a dozen messages
RTNLGRP_NEXTHOP = 32
GROUPS = (
    rtnl.RTMGRP_LINK
    | rtnl.RTMGRP_IPV4_IFADDR
    | rtnl.RTMGRP_IPV4_ROUTE
    | rtnl.RTMGRP_IPV4_RULE
    | rtnl.RTMGRP_IPV6_IFADDR
    | rtnl.RTMGRP_IPV6_ROUTE
    | rtnl.RTMGRP_IPV6_RULE
    | rtnl.RTMGRP_IPV6_IFINFO  # the IPv6 MTU that a router advertised
    | 1 << (RTNLGRP_NEXTHOP - 1)
)
BUFFER = 1 << 20  # bytes; what overflows it counts as a change


class Watch:
    """A thread of its own that runs `changed` after each burst of changes, until stop().

    The socket belongs to the network namespace of the thread that makes the Watch. What
    `changed` raises is logged, and the watch goes on: the datapath does not stop for it.
    """

    def __init__(self, datapath: Datapath, changed: Callable[[], object], debounce: float = DEBOUNCE) -> None:
        self.datapath = datapath
        self.changed = changed
        self.debounce = debounce
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        self.socket.bind((0, GROUPS))
        self.wake = os.eventfd(0)
        self.thread = threading.Thread(target=self.run, name="route-watch", daemon=True)

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        """End the thread and wait for it; not from within `changed`."""
        os.eventfd_write(self.wake, 1)
        self.thread.join()
        self.socket.close()
        os.close(self.wake)

    def run(self) -> None:
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        poll.register(self.wake, select.POLLIN)
        due: float | None = None
        while True:
            ready = poll.poll(None if due is None else max(0.0, due - time.monotonic()) * 1000)
            if any(fd == self.wake for fd, _ in ready):
                return
            if ready and self.read(parse=due is None) and due is None:
                due = time.monotonic() + self.debounce
            if due is not None and time.monotonic() >= due:
                due = None
                self.call()

    def read(self, parse: bool) -> bool:
        """Empty the socket. Was there a change? Not parsed where it makes no difference any more."""
        found = False
        marshal = MarshalRtnl()
        while True:
            try:
                data = self.socket.recv(1 << 16)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                found = True
                continue
            found = found or not parse or any(matters(message, self.datapath) for message in marshal.parse(data))

    def call(self) -> None:
        try:
            self.changed()
        except Exception:  # whatever it is, the next change of the routes must still be heard
            log.exception("cannot follow a change of the routes; the next change is the next try")


def matters(message: Any, datapath: Datapath) -> bool:
    """Is this rtnetlink message a reason to plan anew?"""
    kind = message["header"]["type"]
    if kind in (rtnl.RTM_NEWROUTE, rtnl.RTM_DELROUTE):
        table = message.get_attr("RTA_TABLE") or message["table"]
        return table == MAIN or (table == datapath.route_table and kind == rtnl.RTM_DELROUTE)
    if kind == rtnl.RTM_NEWRULE:
        return False
    if kind == rtnl.RTM_DELRULE:
        priority = message.get_attr("FRA_PRIORITY") or 0
        return datapath.rule_priority <= priority <= datapath.rule_priority + 2
    return True
