"""Reads and writes the kernel's routes, and reads its interfaces, by pyroute2."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink import rtnl
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import rt_type
from pyroute2.netlink.rtnl.rtmsg import rtmsg, rtmsg_base

from scentd.core import lowered_mtu
from scentd.core.interest import Spans, overlaps
from scentd.core.route_tables import Link, Nexthop, Route
from scentd.datapath.host.ip_rules import FAMILY, PROTOCOL
from scentd.errors import HostError
from scentd.system import rtnetlink

log = logging.getLogger(__name__)

# The route or its interface disappeared between reading and writing; the watch calls again.
TOO_LATE = (errno.ENODEV, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.ESRCH)

# RTNH_F_ONLINK: a copy's gateway is not looked up, because rules of the host may lead elsewhere than the route itself.
ONLINK = 4
KINDS = {rt_type[kind]: kind for kind in ("unicast", "throw", "unreachable", "blackhole", "prohibit")}
TICKS = 100  # USER_HZ: the kernel's unit for times
# What a copy has, too. A route with any other attribute gets none. RTA_CACHEINFO says when the route ends; the watch
# looks again then.
COPIED = {
    *("RTA_TABLE", "RTA_DST", "RTA_OIF", "RTA_GATEWAY", "RTA_VIA", "RTA_PRIORITY", "RTA_PREFSRC", "RTA_METRICS"),
    *("RTA_MULTIPATH", "RTA_FLOW", "RTA_PREF", "RTA_NH_ID", "RTA_CACHEINFO", "RTA_PAD"),
}
# Attributes that pyroute2 0.9 does not know (linux/rtnetlink.h).
rtmsg_base.nla_map += (
    *(("RTA_PAD", "hex"), ("RTA_UID", "uint32"), ("RTA_TTL_PROPAGATE", "uint8"), ("RTA_IP_PROTO", "uint8")),
    *(("RTA_SPORT", "hex"), ("RTA_DPORT", "hex"), ("RTA_NH_ID", "uint32")),
)
rtmsg_base.metrics.nla_map += (("RTAX_FASTOPEN_NO_COOKIE", "uint32"),)


def read_routes(version: int, table: int, ranges: Spans) -> list[Route]:
    """The routes of a table to these addresses, but for ours. A host with a thousand interfaces has thousands."""
    messages = rtnetlink.routes(FAMILY[version], table)
    decoded = (decode(m) for m in messages if overlaps(ranges, version, *rtnetlink.destination_of(m)))
    return [parse(m, version) for m in decoded if m.get("table") == table and m["proto"] != PROTOCOL]


def decode(body: bytes) -> Any:
    header = rtnetlink.HEADER.pack(rtnetlink.HEADER.size + len(body), rtnl.RTM_NEWROUTE, 0, 0, 0)
    message = rtmsg(header + body)
    message.decode()
    return message


def read_ours(ip: IPRoute, version: int) -> dict[int, list[Route]]:
    """Our routes by table."""
    tables: dict[int, list[Route]] = {}
    for message in ip.get_routes(family=FAMILY[version], proto=PROTOCOL):
        if message["proto"] == PROTOCOL:
            tables.setdefault(message.get("table"), []).append(parse(message, version))
    return tables


def write_routes(ip: IPRoute, version: int, table: int, have: Iterable[Route], want: Iterable[Route]) -> bool:
    """Give a table these routes of ours. Return False, and log it, if the kernel refused one."""
    gone, new = lowered_mtu.diff(have, want)
    refused: list[str] = []
    for command, routes in (("del", gone), ("replace", new)):
        for route in routes:
            try:
                ip.route(command, **request(route, table))
            except NetlinkError as error:
                if error.code not in TOO_LATE:
                    raise
                if command == "replace":
                    refused.append(f"{route.prefix}: {error}")
    if refused:
        log.warning("table %d: %d routes refused, first: %s", table, len(refused), refused[0])
    if gone or new:
        log.info("table %d: IPv%d: %d routes set, %d deleted", table, version, len(new), len(gone))
    return not refused


class LinkReader(Mapping[int, Link]):
    """The MTUs and groups of interfaces, up or down, by index. Each is read when it is first asked for: a host may have
    thousands, of which few lead to peers.
    """

    def __init__(self, ip: IPRoute) -> None:
        self._ip = ip
        self._links: dict[int, Link | None] = {}

    def __getitem__(self, index: int) -> Link:
        if index not in self._links:
            self._links[index] = self._read(index)
        link = self._links[index]
        if link is None:
            raise KeyError(index)
        return link

    def __iter__(self) -> Iterator[int]:
        return (index for index, link in self._links.items() if link)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _read(self, index: int) -> Link | None:
        try:
            (message,) = self._ip.link("get", index=index)
        except NetlinkError as error:
            if error.code not in (errno.ENODEV, errno.EINVAL):
                raise
            return None
        mtu = message.get_attr("IFLA_MTU")
        families_of = message.get_attr("IFLA_AF_SPEC")
        inet6 = families_of.get_attr("AF_INET6") if families_of is not None else None
        settings = inet6.get_attr("IFLA_INET6_CONF") if inet6 is not None else None
        return Link(mtu, settings["mtu"] if settings else mtu, message.get_attr("IFLA_GROUP") or 0)


@contextmanager
def routing_socket() -> Iterator[IPRoute]:
    """A routing socket; the kernel's refusals become HostError."""
    try:
        with IPRoute(strict_check=True) as ip:  # strict: the kernel picks the table out of a dump
            yield ip
    except NetlinkError as error:
        way_out = "; scentd needs CAP_NET_ADMIN" if error.code in (errno.EPERM, errno.EACCES) else ""
        raise HostError(f"routes: the kernel refused: {error}{way_out}") from error


def parse(message: Any, version: int) -> Route:
    """A Route from pyroute2's rtmsg."""
    destination = message.get_attr("RTA_DST") or ("0.0.0.0" if version == 4 else "::")
    source = message.get_attr("RTA_PREFSRC")
    metrics = message.get_attr("RTA_METRICS")
    hops = message.get_attr("RTA_MULTIPATH")
    kind = KINDS.get(message["type"], "other")
    parts = [message, *(hops or [])]
    cache = message.get_attr("RTA_CACHEINFO")
    return Route(
        prefix=ip_network(f"{destination}/{message['dst_len']}"),
        kind=kind,  # type: ignore[arg-type]
        nexthops=tuple(map(nexthop, hops or [message])) if kind == "unicast" else (),
        metric=message.get_attr("RTA_PRIORITY") or 0,
        tos=message["tos"],
        scope=message["scope"],
        source=ip_address(source) if source else None,
        metrics=tuple(sorted((name[5:].lower(), value) for name, value, *_ in metrics["attrs"])) if metrics else (),
        preference=(message.get_attr("RTA_PREF") or 0) if kind == "unicast" else 0,
        nexthop_object=message.get_attr("RTA_NH_ID") or 0,
        unsupported=any(name not in COPIED for part in parts for name, *_ in part["attrs"]),
        expires=-(-max(cache["rta_expires"], 0) // TICKS) if cache else 0,
    )


def nexthop(part: Any) -> Nexthop:
    """A Nexthop from a route with one next hop, or from an entry of RTA_MULTIPATH."""
    via = part.get_attr("RTA_VIA")
    gateway = via["addr"] if via else part.get_attr("RTA_GATEWAY")
    multipath = "hops" in part
    return Nexthop(
        interface=part["oif"] if multipath else part.get_attr("RTA_OIF") or 0,
        gateway=ip_address(gateway) if gateway else None,
        weight=part["hops"] + 1 if multipath else 1,
        realm=part.get_attr("RTA_FLOW") or 0,
    )


def request(route: Route, table: int) -> dict[str, Any]:
    """The route as pyroute2's route() takes it."""
    arguments: dict[str, Any] = {
        "family": FAMILY[route.prefix.version],
        "table": table,
        "proto": PROTOCOL,
        "type": rt_type[route.kind],
        "dst": str(route.prefix),
        "scope": route.scope,
        "tos": route.tos,
        "priority": route.metric,
        "metrics": dict(route.metrics),
        "prefsrc": str(route.source) if route.source else None,
        "pref": route.preference or None,
    }
    if route.nexthop_object:
        arguments["nh_id"] = route.nexthop_object
    elif len(route.nexthops) > 1:
        arguments["multipath"] = [
            {
                "oif": hop.interface,
                "hops": hop.weight - 1,
                "flags": ONLINK * (hop.gateway is not None),
                **hop_attributes(route, hop),
            }
            for hop in route.nexthops
        ]
    elif route.nexthops:
        (hop,) = route.nexthops
        arguments |= {"oif": hop.interface, "flags": ONLINK * (hop.gateway is not None), **hop_attributes(route, hop)}
    return {
        name: value for name, value in arguments.items() if value not in (None, {}) and (value or name != "priority")
    }


def hop_attributes(route: Route, hop: Nexthop) -> dict[str, Any]:
    realm = {"flow": hop.realm} if hop.realm else {}
    if hop.gateway is None:
        return realm
    if hop.gateway.version != route.prefix.version:
        return realm | {"via": {"family": FAMILY[hop.gateway.version], "addr": str(hop.gateway)}}
    return realm | {"gateway": str(hop.gateway)}
