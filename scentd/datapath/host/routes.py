"""Routes to peers with a lowered MTU, so that packets of this host's sockets still fit the path with a scent.

If the programs alone stamp (`rule_free`), the lowered routes are in the table `local`, which the kernel asks first. tc
comes after the MTU check, so the routes need no rule. That matters: the first rule that is not the kernel's own makes
every look-up of this host slower, until the host restarts.

Otherwise the lowered routes are in a table of our own, with rules at datapath.rule_priority p, both families:

    p    fwmark S/S goto p+2      stamped packets: the full MTU, from the host's own tables
    p    to fe80::/10 goto p+2    IPv6 only: link-local, even if a peer is ::/0
    p+1  iif lo lookup TABLE      packets that this host itself sends: the lowered MTU
    p+1  lookup TABLE             forwarded packets, too: only with the offload, which stamps after the MTU check
    p+2  nop                      the target of the goto

The stamp queue's verdict sets the mark S in mangle OUTPUT, the changed mark makes the kernel route the packet
again, and rule p skips our table. The routes of our table are ours, and those routes of `local` and those rules
at our priorities that have our PROTOCOL. Nothing else is deleted, and the main table is never written.

pyroute2's sync sockets do not work inside a running asyncio loop: call from a thread.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink import rtnl
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import rt_type
from pyroute2.netlink.rtnl.fibmsg import FR_ACT_GOTO, FR_ACT_NOP, FR_ACT_TO_TBL
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from scentd.config.sections import Config, Datapath, stamped_peers
from scentd.core import lowered_mtu
from scentd.core.interest import Spans, overlaps, spans
from scentd.core.lowered_mtu import Link, Nexthop, Route, RoutePlan
from scentd.core.pairs import overhead
from scentd.datapath.family import families
from scentd.errors import HostError
from scentd.prefix import Prefix, prefixes
from scentd.system import rtnetlink

log = logging.getLogger(__name__)

FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
MAIN, LOCAL = 254, 255
FORWARDING = ("forwarding", "force_forwarding")  # the second: IPv6, since Linux 6.17
KERNELS_RULES = {(0, LOCAL), (32766, MAIN), (32767, 253)}  # (priority, table)
PROTOCOL = 83  # RTA_PROTOCOL and FRA_PROTOCOL of our routes and rules; unassigned in /etc/iproute2/rt_protos
ONLINK = 4  # RTNH_F_ONLINK
KINDS = {rt_type["unicast"]: "unicast", rt_type["throw"]: "throw"}
# The route or its interface disappeared between reading and writing; the watch calls again.
TOO_LATE = (errno.ENODEV, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.ESRCH)


def peer_prefixes(config: Config) -> list[tuple[Prefix, int]]:
    """The prefixes that stamped packets go to, each with the overhead in bytes."""
    return [(p, overhead(peer, p.version)) for peer in stamped_peers(config) for p in prefixes(peer.addresses)]


def apply(config: Config, forwarded: bool = False, rule_free: bool = False) -> RoutePlan:
    """Make the routes and rules that the main table and the configuration require. Raises HostError.

    `forwarded`: the lowered MTU is for forwarded packets, too, and the kernel tells their sources.
    `rule_free`: make no rules; may_be_rule_free() must be true.
    If the kernel refuses a route because the host has changed meanwhile, the refusal is logged and the route left
    out. Until the next call, packets on that route that are too big leave unstamped.
    """
    with routing_socket() as ip:
        plan, own = make_plan(config), config.datapath.route_table
        for version in families():
            want = [route for route in plan.routes if route.prefix.version == version]
            rules = own_rules(config.datapath, version, forwarded) if want else []
            # A lowered route exists at every moment: new routes come first.
            if rule_free:
                write_routes(ip, version, LOCAL, want)
                write_rules(ip, version, config.datapath, [])
                write_routes(ip, version, own, [])
            else:
                write_routes(ip, version, own, want)
                write_rules(ip, version, config.datapath, rules)
                write_routes(ip, version, LOCAL, [])
    return plan


def may_be_rule_free(config: Config, plan: RoutePlan) -> bool:
    """Whether the lowered routes may be in `local`: the kernel asks it before all rules, for forwarded packets, too.

    Raises HostError.
    """
    if forwards() and not config.stamp.forwarded:
        return False
    with routing_socket() as ip:
        if any(foreign_rules(ip, version, config.datapath) for version in families()):
            return False
        ranges = spans(route.prefix for route in plan.routes)
        return lowered_mtu.may_precede_rules(
            plan.routes, (r.prefix for v in families() for r in read_routes(v, LOCAL, False, ranges))
        )


def forwards() -> bool:
    """Whether this host forwards packets by any of its interfaces, of either family."""
    folders = [f"/proc/sys/net/ipv{version}/conf" for version in families()]
    return any(
        is_on(f"{folder}/{interface}/{name}")
        for folder in folders
        for interface in os.listdir(folder)
        for name in FORWARDING
    )


def is_on(switch: str) -> bool:
    try:
        with open(switch, "rb") as file:
            return file.read().strip() != b"0"
    except FileNotFoundError:  # the interface disappeared, or has no such switch
        return False


def read_plan(config: Config) -> RoutePlan:
    """The plan that apply() would carry out now; changes nothing. Raises HostError."""
    return make_plan(config)


def read_own(datapath: Datapath) -> list[Route]:
    """Our routes, both families. Raises HostError."""
    tables = ((version, table) for version in families() for table in (datapath.route_table, LOCAL))
    return [route for version, table in tables for route in read_routes(version, table)]


def remove(datapath: Datapath) -> None:
    """Remove our rules and routes; having none is no error. Raises HostError."""
    with routing_socket() as ip:
        for version in families():
            write_rules(ip, version, datapath, [])
            for table in (datapath.route_table, LOCAL):
                write_routes(ip, version, table, [])


def make_plan(config: Config) -> RoutePlan:
    peers = peer_prefixes(config)
    if not peers:
        return RoutePlan()
    ranges = spans(prefix for prefix, _ in peers)
    main = [route for version in families() for route in read_routes(version, MAIN, ranges=ranges)]
    return lowered_mtu.plan(main, read_links(hop.interface for route in main for hop in route.nexthops), peers)


def own_rules(datapath: Datapath, version: int, forwarded: bool = False) -> list[dict[str, int | str]]:
    """Our rules as pyroute2 takes them, in an order that misroutes no packet while they are added."""
    p, mark = datapath.rule_priority, datapath.mark_stamped
    passing: dict[str, int | str] = {"priority": p, "action": FR_ACT_GOTO, "goto": p + 2}
    ours: dict[str, int | str] = {"priority": p + 1, "action": FR_ACT_TO_TBL, "table": datapath.route_table}
    return [
        {"priority": p + 2, "action": FR_ACT_NOP},
        {**passing, "fwmark": mark, "fwmask": mark},
        *([{**passing, "dst": "fe80::", "dst_len": 10}] if version == 6 else []),
        {**ours, "iifname": "lo"},
        *([ours] if forwarded else []),
    ]


RULE_FIELDS = ("priority", "goto", "fwmark", "fwmask", "dst", "dst_len", "iifname", "table")


def read_rules(ip: IPRoute, version: int, datapath: Datapath) -> list[dict[str, int | str]]:
    """The rules with our priorities and protocol, in the form of own_rules()."""
    rules: list[dict[str, int | str]] = []
    for rule in ip.get_rules(family=FAMILY[version]):
        fields = {name: rule.get(name) for name in RULE_FIELDS}
        priorities = range(datapath.rule_priority, datapath.rule_priority + 3)
        if fields["priority"] in priorities and rule.get("protocol") == PROTOCOL:
            rules.append({"action": rule["action"], **{name: value for name, value in fields.items() if value}})
    return rules


def foreign_rules(ip: IPRoute, version: int, datapath: Datapath) -> list[tuple[int, int]]:
    """(priority, table) of the rules that are neither ours nor the kernel's initial ones."""
    all_rules = ip.get_rules(family=FAMILY[version])
    others = [(r.get("priority") or 0, r.get("table") or 0) for r in all_rules if r.get("protocol") != PROTOCOL]
    return [rule for rule in others if rule not in KERNELS_RULES]


def write_rules(ip: IPRoute, version: int, datapath: Datapath, want: list[dict[str, int | str]]) -> None:
    current = read_rules(ip, version, datapath)
    unwanted = [rule for rule in current if rule not in want]
    # The rule that leads into our table is deleted first, the target of the goto last.
    for rule in sorted(unwanted, key=lambda rule: rule["action"] != FR_ACT_TO_TBL):
        ip.rule("del", family=FAMILY[version], protocol=PROTOCOL, **rule)
    for rule in want:
        if rule not in current:
            ip.rule("add", family=FAMILY[version], protocol=PROTOCOL, **rule)


def write_routes(ip: IPRoute, version: int, table: int, want: Iterable[Route]) -> None:
    gone, new = lowered_mtu.diff(read_routes(version, table), want)
    refused: list[str] = []
    for command, routes in (("del", gone), ("replace", new)):
        for route in routes:
            try:
                ip.route(command, **request(route, table))
            except NetlinkError as error:
                if error.code not in TOO_LATE:
                    raise
                refused.append(f"{command} {route.prefix}: {error}")
    if refused:
        log.warning("table %d: %d routes refused, first: %s", table, len(refused), refused[0])
    if gone or new:
        log.info("table %d: IPv%d: %d routes set, %d deleted", table, version, len(new), len(gone))


def read_routes(version: int, table: int, ours: bool = True, ranges: Spans | None = None) -> list[Route]:
    """The routes of a table; of `local` only our own, or with `ours=False` only the others.

    `ranges`: only the routes of these addresses. A host with a thousand interfaces has thousands of others.
    """
    messages = rtnetlink.routes(FAMILY[version], table, PROTOCOL if ours and table == LOCAL else 0)
    wanted = (m for m in messages if ranges is None or overlaps(ranges, version, *rtnetlink.destination_of(m)))
    decoded = map(decode, wanted)
    found = (m for m in decoded if m.get("table") == table)
    return [parse(m, version) for m in found if table != LOCAL or (m["proto"] == PROTOCOL) is ours]


def decode(body: bytes) -> Any:
    header = rtnetlink.HEADER.pack(rtnetlink.HEADER.size + len(body), rtnl.RTM_NEWROUTE, 0, 0, 0)
    message = rtmsg(header + body)
    message.decode()
    return message


def read_links(indexes: Iterable[int]) -> dict[int, Link]:
    """The MTUs of interfaces, up or down, by index."""
    links, all_links = {}, rtnetlink.links()
    for index in set(indexes) & all_links.keys():
        mtu = all_links[index].get_attr("IFLA_MTU")
        families_of = all_links[index].get_attr("IFLA_AF_SPEC")
        inet6 = families_of.get_attr("AF_INET6") if families_of is not None else None
        settings = inet6.get_attr("IFLA_INET6_CONF") if inet6 is not None else None
        links[index] = Link(mtu, settings["mtu"] if settings else mtu)
    return links


def parse(message: Any, version: int) -> Route:
    """A Route from pyroute2's rtmsg."""
    destination = message.get_attr("RTA_DST") or ("0.0.0.0" if version == 4 else "::")
    source = message.get_attr("RTA_PREFSRC")
    metrics = message.get_attr("RTA_METRICS")
    hops = message.get_attr("RTA_MULTIPATH")
    kind = KINDS.get(message["type"], "other")
    return Route(
        prefix=ip_network(f"{destination}/{message['dst_len']}"),
        kind=kind,  # type: ignore[arg-type]
        nexthops=tuple(map(nexthop, hops or [message])) if kind == "unicast" else (),
        metric=message.get_attr("RTA_PRIORITY") or 0,
        tos=message["tos"],
        scope=message["scope"],
        source=ip_address(source) if source else None,
        metrics=tuple(sorted((name[5:].lower(), value) for name, value, *_ in metrics["attrs"])) if metrics else (),
        unsupported=message["src_len"] > 0
        or any(hop.get_attr("RTA_ENCAP_TYPE") is not None for hop in [message, *(hops or [])]),
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
        onlink=bool(part["flags"] & ONLINK),
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
    }
    if len(route.nexthops) > 1:
        arguments["multipath"] = [
            {
                "oif": hop.interface,
                "hops": hop.weight - 1,
                "flags": ONLINK * hop.onlink,
                **gateway_attributes(route, hop),
            }
            for hop in route.nexthops
        ]
    for hop in route.nexthops if len(route.nexthops) == 1 else ():
        arguments |= {"oif": hop.interface, "flags": ONLINK * hop.onlink, **gateway_attributes(route, hop)}
    return {
        name: value for name, value in arguments.items() if value not in (None, {}) and (value or name != "priority")
    }


def gateway_attributes(route: Route, hop: Nexthop) -> dict[str, Any]:
    if hop.gateway is None:
        return {}
    if hop.gateway.version != route.prefix.version:
        return {"via": {"family": FAMILY[hop.gateway.version], "addr": str(hop.gateway)}}
    return {"gateway": str(hop.gateway)}


@contextmanager
def routing_socket() -> Iterator[IPRoute]:
    """A routing socket; the kernel's refusals become HostError."""
    try:
        with IPRoute(strict_check=True) as ip:  # strict: the kernel picks the table out of a dump
            yield ip
    except NetlinkError as error:
        way_out = "; scentd needs CAP_NET_ADMIN" if error.code in (errno.EPERM, errno.EACCES) else ""
        raise HostError(f"routes: the kernel refused: {error}{way_out}") from error
