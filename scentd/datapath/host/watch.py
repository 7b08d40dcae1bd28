"""Calls back when the host's routes, addresses or interfaces change, so that our table can follow.

Changes of our own table do not count, except deletions: a network manager that restarts may delete
foreign routes and rules. The callback then writes them again, and the next call finds no difference.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from struct import Struct
from typing import Any

from pyroute2.netlink import rtnl
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from scentd.config.sections import Datapath
from scentd.datapath.host.netlink_watch import NetlinkWatch, messages
from scentd.datapath.host.routes import LOCAL, MAIN, PROTOCOL

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
LINK_MESSAGE = Struct("=20xi")  # struct nlmsghdr, then the index in ifinfomsg; the shortest message of rtnetlink


class Watch(NetlinkWatch):
    """Calls back after each burst of changes.

    A new interface may not wait: its packets need a program as soon as it has routes.
    """

    def __init__(self, datapath: Datapath, callback: Callable[[], object], debounce: float = DEBOUNCE) -> None:
        super().__init__("route-watch", socket.NETLINK_ROUTE, GROUPS, callback, debounce)
        self.datapath = datapath
        self.links = {index for index, _ in socket.if_nameindex()}
        self.marshal = MarshalRtnl()

    def is_change(self, data: bytes) -> bool:
        return any(is_relevant(message, self.datapath) for message in self.marshal.parse(data))

    def look(self, data: bytes) -> None:
        """Look for new and deleted links without parsing all messages: thousands of routes may change at once."""
        for kind, index in links_of(data):
            if kind == rtnl.RTM_DELLINK:
                self.links.discard(index)
            elif index not in self.links:
                self.links.add(index)
                self.urgent = True


def links_of(data: bytes) -> Iterator[tuple[int, int]]:
    """(RTM_NEWLINK or RTM_DELLINK, interface) of netlink messages (linux/netlink.h, struct ifinfomsg)."""
    for kind, at in messages(data, LINK_MESSAGE.size):
        if kind in (rtnl.RTM_NEWLINK, rtnl.RTM_DELLINK):
            yield kind, LINK_MESSAGE.unpack_from(data, at)[0]


def is_relevant(message: Any, datapath: Datapath) -> bool:
    """Whether this rtnetlink message is a reason to plan anew."""
    kind = message["header"]["type"]
    if kind in (rtnl.RTM_NEWROUTE, rtnl.RTM_DELROUTE):
        table = message.get_attr("RTA_TABLE") or message["table"]
        ours = table == datapath.route_table or (table == LOCAL and message["proto"] == PROTOCOL)
        return table == MAIN or (ours and kind == rtnl.RTM_DELROUTE)
    return kind != rtnl.RTM_NEWRULE or message.get_attr("FRA_PROTOCOL") != PROTOCOL
