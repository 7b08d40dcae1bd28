"""Calls back when the host's routes, addresses or interfaces change, so that our table can follow.

Changes of our own routes do not count, except deletions: a network manager that restarts may delete
foreign routes and rules. The callback then writes them again, and the next call finds no difference.
Nor do changes of tables that no rule looks up.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Iterator
from struct import Struct
from typing import Any

from pyroute2.netlink import rtnl
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from scentd.core.mirrored_rules import LOCAL
from scentd.datapath.family import families
from scentd.datapath.host.ip_rules import PROTOCOL, RuleSocket
from scentd.datapath.host.netlink_watch import NetlinkWatch, messages

DEBOUNCE = 0.2  # seconds from the first change to the call: one interface makes a dozen messages
FOLLOW = 0.005  # the same for routes and rules alone, which may not lead packets to where they no longer belong
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

    def __init__(self, callback: Callable[[], object], debounce: float = DEBOUNCE) -> None:
        super().__init__("route-watch", socket.NETLINK_ROUTE, GROUPS, callback, debounce)
        self.rules = RuleSocket()
        self.tables = asked_tables(self.rules)
        self.links = {index for index, _ in socket.if_nameindex()}
        self.marshal = MarshalRtnl()

    def is_change(self, data: bytes) -> bool:
        return any(is_relevant(message, self.tables) for message in self.marshal.parse(data))

    def call(self) -> object:
        self.tables = asked_tables(self.rules)
        return super().call()

    def stop(self) -> None:
        super().stop()
        self.rules.close()

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


def asked_tables(rules: RuleSocket) -> set[int]:
    """The tables that the host's rules look up, but for `local`."""
    return {rule.table for version in families() for rule in rules.read(version)[0]} - {LOCAL}


def is_relevant(message: Any, tables: Collection[int]) -> bool:
    """Whether this rtnetlink message is a reason to plan anew."""
    kind = message["header"]["type"]
    if kind in (rtnl.RTM_NEWROUTE, rtnl.RTM_DELROUTE):
        table = message.get_attr("RTA_TABLE") or message["table"]
        return kind == rtnl.RTM_DELROUTE if message["proto"] == PROTOCOL else table in tables
    return kind != rtnl.RTM_NEWRULE or message.get_attr("FRA_PROTOCOL") != PROTOCOL
