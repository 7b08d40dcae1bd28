"""Calls back when the host's routes, addresses or interfaces change, so that our table can follow.

Changes of our own table do not count, except deletions: a network manager that restarts may delete
foreign routes and rules. The callback then writes them again, and the next call finds no difference.
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
LINK_MESSAGE = Struct("=IH14xi")  # struct nlmsghdr, then the index in ifinfomsg; the shortest message of rtnetlink
BUFFER = 1 << 20  # bytes; an overflow counts as a change


class Watch:
    """A thread of its own that runs `callback` after each burst of changes, until stop().

    The socket belongs to the network namespace of the thread that makes the Watch. An exception of
    `callback` is logged, and the watch goes on: the datapath does not stop for it.
    """

    def __init__(self, datapath: Datapath, callback: Callable[[], object], debounce: float = DEBOUNCE) -> None:
        self.datapath = datapath
        self.callback = callback
        self.debounce = debounce
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        self.socket.bind((0, GROUPS))
        self.wake = os.eventfd(0)
        self.link_appeared = False  # a new interface, since the last call
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
        while True:
            ready = poll.poll(None if due is None else max(0.0, due - time.monotonic()) * 1000)
            if any(fd == self.wake for fd, _ in ready):
                return
            if ready and self.read(parse=due is None) and due is None:
                due = time.monotonic() + self.debounce
            if self.link_appeared:  # its packets need a program as soon as it has routes
                due, self.link_appeared = time.monotonic(), False
            if due is not None and time.monotonic() >= due:
                due = None
                self.call()

    def read(self, parse: bool) -> bool:
        """Empty the socket; whether there was a change. Without `parse` any message counts as one."""
        changed = False
        marshal = MarshalRtnl()
        while True:
            try:
                data = self.socket.recv(1 << 16)
            except BlockingIOError:
                return changed
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                changed = True
                continue
            self.track_links(data)
            changed = (
                changed or not parse or any(is_relevant(message, self.datapath) for message in marshal.parse(data))
            )

    def track_links(self, data: bytes) -> None:
        """Look for new and deleted links without parsing all messages: thousands of routes may change at once."""
        for kind, index in links_of(data):
            if kind == rtnl.RTM_DELLINK:
                self.links.discard(index)
            elif index not in self.links:
                self.links.add(index)
                self.link_appeared = True

    def call(self) -> None:
        try:
            self.callback()
        except Exception:  # the watch must still report the next change
            log.exception("cannot follow a change of the routes; the next change is the next try")


def links_of(data: bytes) -> Iterator[tuple[int, int]]:
    """(RTM_NEWLINK or RTM_DELLINK, interface) of netlink messages (linux/netlink.h, struct ifinfomsg)."""
    at = 0
    while at + LINK_MESSAGE.size <= len(data):
        length, kind, index = LINK_MESSAGE.unpack_from(data, at)
        if kind in (rtnl.RTM_NEWLINK, rtnl.RTM_DELLINK):
            yield kind, index
        at += max(length + 3 & ~3, LINK_MESSAGE.size)


def is_relevant(message: Any, datapath: Datapath) -> bool:
    """Whether this rtnetlink message is a reason to plan anew."""
    kind = message["header"]["type"]
    if kind in (rtnl.RTM_NEWROUTE, rtnl.RTM_DELROUTE):
        table = message.get_attr("RTA_TABLE") or message["table"]
        ours = table == datapath.route_table or (table == LOCAL and message["proto"] == PROTOCOL)
        return table == MAIN or (ours and kind == rtnl.RTM_DELROUTE)
    return kind != rtnl.RTM_NEWRULE or message.get_attr("FRA_PROTOCOL") != PROTOCOL
