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
from collections.abc import Callable, Iterator
from struct import Struct
from typing import Any

from pyroute2.netlink import rtnl
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from scentd.config.sections import Datapath
from scentd.datapath.host.routes import LOCAL, MAIN, PROTOCOL

log = logging.getLogger(__name__)

DEBOUNCE = 0.2  # seconds from the first change to the call: one interface makes a dozen messages
RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV6_NETCONF, RTNLGRP_NEXTHOP = 24, 25, 32
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
    | 1 << (RTNLGRP_IPV4_NETCONF - 1)  # forwarding on or off
    | 1 << (RTNLGRP_IPV6_NETCONF - 1)
)
LINK_MESSAGE = Struct("=IH14xi")  # struct nlmsghdr, then of ifinfomsg the index; the shortest message of rtnetlink
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
        self.appeared = False  # an interface, since the last call
        self.links = {index for index, _ in socket.if_nameindex()}
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
            if self.appeared:  # its packets want a program as soon as it has routes
                due, self.appeared = time.monotonic(), False
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
            self.look_for_links(data)
            found = found or not parse or any(matters(message, self.datapath) for message in marshal.parse(data))

    def look_for_links(self, data: bytes) -> None:
        """Of all messages, without the price of parsing them: a router's table may change by thousands."""
        for kind, index in links_of(data):
            if kind == rtnl.RTM_DELLINK:
                self.links.discard(index)
            elif index not in self.links:
                self.links.add(index)
                self.appeared = True

    def call(self) -> None:
        try:
            self.changed()
        except Exception:  # whatever it is, the next change of the routes must still be heard
            log.exception("cannot follow a change of the routes; the next change is the next try")


def links_of(data: bytes) -> Iterator[tuple[int, int]]:
    """(RTM_NEWLINK or RTM_DELLINK, interface) of netlink messages (linux/netlink.h, struct ifinfomsg)."""
    at = 0
    while at + LINK_MESSAGE.size <= len(data):
        length, kind, index = LINK_MESSAGE.unpack_from(data, at)
        if kind in (rtnl.RTM_NEWLINK, rtnl.RTM_DELLINK):
            yield kind, index
        at += max(length + 3 & ~3, LINK_MESSAGE.size)


def matters(message: Any, datapath: Datapath) -> bool:
    """Is this rtnetlink message a reason to plan anew?"""
    kind = message["header"]["type"]
    if kind in (rtnl.RTM_NEWROUTE, rtnl.RTM_DELROUTE):
        table = message.get_attr("RTA_TABLE") or message["table"]
        ours = table == datapath.route_table or (table == LOCAL and message["proto"] == PROTOCOL)
        return table == MAIN or (ours and kind == rtnl.RTM_DELROUTE)
    return kind != rtnl.RTM_NEWRULE or message.get_attr("FRA_PROTOCOL") != PROTOCOL
