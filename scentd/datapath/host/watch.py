"""Calls back when the host's routes, addresses or interfaces change, so that our table can follow.

Changes of our own routes do not count, except deletions: a network manager that restarts may delete
foreign routes and rules. The callback then writes them again, and the next call finds no difference.
Nor do changes of tables that no rule looks up.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from pyroute2.netlink import rtnl
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from scentd.core.interest import Interest, overlaps
from scentd.core.mirrored_rules import LOCAL
from scentd.datapath.family import families
from scentd.datapath.host.ip_rules import PROTOCOL, RuleSocket
from scentd.datapath.host.netlink_watch import NetlinkWatch
from scentd.system import rtnetlink
from scentd.system.rtnetlink import LinkMessage

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
RTM_NEWNETCONF, RTM_DELNETCONF = 80, 81
NETCONFMSG, NETCONFA_FORWARDING, NETCONFA_FORCE_FORWARDING = 4, 2, 9  # linux/netconf.h: bytes of the header; attributes
VERSIONS = {socket.AF_INET: 4, socket.AF_INET6: 6}


@dataclass
class Changes:
    """What has changed on the host since the last call."""

    links: dict[int, LinkMessage] = field(default_factory=dict)  # by index: new ones and changed ones
    gone: set[int] = field(default_factory=set)  # indexes; a new interface may have one of them
    addresses: dict[tuple[int, str], bool] = field(default_factory=dict)  # (interface, address): whether it came
    routes: bool = False  # or whatever else our routes and rules depend on
    lost: bool = False  # nobody knows what

    def of(self, addresses: Collection[tuple[int, str]]) -> set[tuple[int, str]]:
        """The addresses that there are now, if these were there before."""
        kept = {a for a in addresses if a[0] not in self.gone and self.addresses.get(a, True)}
        return kept | {address for address, came in self.addresses.items() if came}


class Watch(NetlinkWatch):
    """Calls back after each burst of changes, which are `last` then.

    A new interface may not wait: its packets need a program as soon as it has routes. `interest` says what matters to
    our routes and rules; without it everything does.
    """

    def __init__(self, callback: Callable[[], object], debounce: float = DEBOUNCE) -> None:
        super().__init__("route-watch", socket.NETLINK_ROUTE, GROUPS, callback, debounce)
        self.interest: Interest | None = None
        self.rules = RuleSocket()
        self.tables = asked_tables(self.rules)
        self.links = {index for index, _ in socket.if_nameindex()}
        self.marshal = MarshalRtnl()
        self.changes = Changes()
        self.last = self.changes  # for the callback
        self.noted = False  # a change in the messages looked at last

    def call(self) -> object:
        self.last, self.changes = self.changes, Changes()
        self.tables = asked_tables(self.rules)
        return super().call()

    def stop(self) -> None:
        super().stop()
        self.rules.close()

    def lose(self) -> None:
        self.changes.lost = True

    def is_change(self, data: bytes) -> bool:
        return self.noted

    def look(self, data: bytes) -> None:
        """Note what has changed. Few messages are decoded: thousands of routes may change at once."""
        self.noted = False
        for kind, body, whole in rtnetlink.messages(data):
            if kind in (rtnetlink.RTM_NEWLINK, rtnetlink.RTM_DELLINK):
                self._note_link(kind, body)
            elif kind in (rtnetlink.RTM_NEWADDR, rtnetlink.RTM_DELADDR):
                self._note_address(kind, body)
            elif not self.changes.routes and self._may_matter(kind, body):
                self.changes.routes = any(is_relevant(message, self.tables) for message in self.marshal.parse(whole))
            self.noted = self.noted or self.changes.routes

    def _note_link(self, kind: int, body: bytes) -> None:
        family, _, index, *_ = rtnetlink.LINK.unpack_from(body)
        if family not in (socket.AF_UNSPEC, socket.AF_INET6):  # a bridge tells of its port; so does the port
            return
        if self.interest is None or index in self.interest.interfaces:
            self.changes.routes = True
        if family == socket.AF_INET6:
            return
        self.noted = True
        if kind == rtnetlink.RTM_DELLINK:
            self.links.discard(index)
            self.changes.links.pop(index, None)
            self.changes.gone.add(index)
            return
        self.changes.links[index] = LinkMessage(body)
        if index not in self.links:
            self.links.add(index)
            self.urgent = True

    def _note_address(self, kind: int, body: bytes) -> None:
        address, index = rtnetlink.address_of(body), rtnetlink.ADDRESS.unpack_from(body)[4]
        if address is None or index == rtnetlink.LOOPBACK:
            self.changes.routes = self.noted = True
            return
        is_new = kind == rtnetlink.RTM_NEWADDR
        self.noted = True
        self.changes.addresses[index, str(address)] = is_new
        if self.interest is None or self.interest.has_address(address, index, is_new):
            self.changes.routes = True

    def _may_matter(self, kind: int, body: bytes) -> bool:
        """Whether a message is worth decoding."""
        if self.interest is None:
            return True
        if kind in (rtnl.RTM_NEWROUTE, rtnl.RTM_DELROUTE):
            version = VERSIONS.get(rtnetlink.ROUTE.unpack_from(body)[0])
            return version is not None and overlaps(self.interest.spans, version, *rtnetlink.destination_of(body))
        if kind in (RTM_NEWNETCONF, RTM_DELNETCONF):  # each new interface has one
            found = rtnetlink.attributes(body, NETCONFMSG)
            values = (found.get(NETCONFA_FORWARDING), found.get(NETCONFA_FORCE_FORWARDING))
            return self.interest.forwards in [not any(value) for value in values if value is not None]
        return True


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
