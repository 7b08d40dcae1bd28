"""Routes to peers with room for the scent, so that sockets make packets that have grown to no more than fits.

Where the programs alone stamp (`rule_free`) they stand in the table `local`, which the kernel asks first. tc is behind
the MTU check, so the lowered routes are all it takes, and not one rule is needed: with the first rule that is not the
kernel's own, every look-up of this host becomes slower, and stays so until the host restarts.

Otherwise they stand in a table of our own, with rules at datapath.rule_priority p, both families:

    p    fwmark S/S goto p+2      stamped already: the full MTU, in the tables as they are
    p    to fe80::/10 goto p+2    IPv6 only: link-local, even if a peer is ::/0
    p+1  iif lo lookup TABLE      what this host sends itself: the lowered MTU
    p+1  lookup TABLE             what it forwards, too: only with the offload, which stamps behind the MTU check
    p+2  nop                      where p jumps to

The stamp queue's verdict sets the mark S in mangle OUTPUT, a changed mark makes the kernel route
again, and rule p passes our table by. Ours are the routes of our table, those of `local` and the rules with our
priorities that have our PROTOCOL; nothing else is deleted, and the main table is never written.

pyroute2's sync sockets do not work inside a running asyncio loop: call from a thread.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import rt_type
from pyroute2.netlink.rtnl.fibmsg import FR_ACT_GOTO, FR_ACT_NOP, FR_ACT_TO_TBL

from scentd.config.sections import Config, Datapath, stamped_peers
from scentd.core import lowered_mtu
from scentd.core.lowered_mtu import Link, Nexthop, Route, RoutePlan
from scentd.core.pairs import overhead
from scentd.datapath.family import families
from scentd.errors import HostError
from scentd.prefix import Prefix, prefixes

log = logging.getLogger(__name__)

FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
MAIN, LOCAL = 254, 255
FORWARDING = ("forwarding", "force_forwarding")  # the second: IPv6, since Linux 6.17
KERNELS_RULES = {(0, LOCAL), (32766, MAIN), (32767, 253)}  # (priority, table)
PROTOCOL = 83  # RTA_PROTOCOL and FRA_PROTOCOL of all that is ours; unassigned in /etc/iproute2/rt_protos
ONLINK = 4  # RTNH_F_ONLINK
KINDS = {rt_type["unicast"]: "unicast", rt_type["throw"]: "throw"}
# The route or its interface went between our reading and our writing; the watch will call again.
TOO_LATE = (errno.ENODEV, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.ESRCH)


def peer_prefixes(config: Config) -> list[tuple[Prefix, int]]:
    """Where stamped packets go, and by how many bytes they grow."""
    return [(p, overhead(peer, p.version)) for peer in stamped_peers(config) for p in prefixes(peer.addresses)]


def apply(config: Config, forwarded: bool = False, rule_free: bool = False) -> RoutePlan:
    """Make our routes and rules equal to what the main table and the configuration ask for. Raises HostError.

    `forwarded`: the lowered MTU is for forwarded packets, too, and the kernel tells their sources.
    `rule_free`: without rules; may_be_rule_free() has said so.
    A route that the kernel refuses because the host changed meanwhile is logged and left out:
    packets there leave unstamped when they are too big, until the next call.
    """
    with opened() as ip:
        plan, own = current(ip, config), config.datapath.route_table
        for version in families():
            want = [route for route in plan.routes if route.prefix.version == version]
            rules = wanted_rules(config.datapath, version, forwarded) if want else []
            # There is a lowered route at any moment: what is new first.
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
    """Whether the table `local` will do: it has the host's own rules behind it, and is for forwarded packets, too.

    Raises HostError.
    """
    if forwards() and not config.stamp.forwarded:
        return False
    with opened() as ip:
        if any(foreign_rules(ip, version, config.datapath) for version in families()):
            return False
        return lowered_mtu.may_precede_rules(
            plan.routes, (r.prefix for v in families() for r in read_routes(ip, v, LOCAL, False))
        )


def forwards() -> bool:
    """Whether this host forwards packets by any of its interfaces, of either family."""
    settings = (Path(f"/proc/sys/net/ipv{version}/conf") for version in families())
    return any(is_on(switch) for setting in settings for name in FORWARDING for switch in setting.glob(f"*/{name}"))


def is_on(switch: Path) -> bool:
    try:
        return switch.read_text().strip() != "0"
    except FileNotFoundError:  # the interface went
        return False


def planned(config: Config) -> RoutePlan:
    """What apply() would aim for now; touches nothing. Raises HostError."""
    with opened() as ip:
        return current(ip, config)


def have(datapath: Datapath) -> list[Route]:
    """Our routes, both families. Raises HostError."""
    with opened() as ip:
        tables = ((version, table) for version in families() for table in (datapath.route_table, LOCAL))
        return [route for version, table in tables for route in read_routes(ip, version, table)]


def remove(datapath: Datapath) -> None:
    """Take our rules and routes away; none there is fine. Raises HostError."""
    with opened() as ip:
        for version in families():
            write_rules(ip, version, datapath, [])
            for table in (datapath.route_table, LOCAL):
                write_routes(ip, version, table, [])


def current(ip: IPRoute, config: Config) -> RoutePlan:
    peers = peer_prefixes(config)
    if not peers:
        return RoutePlan()
    main = [route for version in families() for route in read_routes(ip, version, MAIN)]
    return lowered_mtu.plan(main, read_links(ip), peers)


def wanted_rules(datapath: Datapath, version: int, forwarded: bool = False) -> list[dict[str, int | str]]:
    """Our rules as pyroute2 takes them, in an order in which no packet is misled."""
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
    """The rules with our priorities and protocol, in the form of wanted_rules()."""
    found = []
    for rule in ip.get_rules(family=FAMILY[version]):
        given = {name: rule.get(name) for name in RULE_FIELDS}
        ours = range(datapath.rule_priority, datapath.rule_priority + 3)
        if given["priority"] in ours and rule.get("protocol") == PROTOCOL:
            found.append({"action": rule["action"], **{name: value for name, value in given.items() if value}})
    return found


def foreign_rules(ip: IPRoute, version: int, datapath: Datapath) -> list[tuple[int, int]]:
    """(priority, table) of the rules that are neither ours nor what the kernel begins with."""
    all_rules = ip.get_rules(family=FAMILY[version])
    there = [(r.get("priority") or 0, r.get("table") or 0) for r in all_rules if r.get("protocol") != PROTOCOL]
    return [rule for rule in there if rule not in KERNELS_RULES]


def write_rules(ip: IPRoute, version: int, datapath: Datapath, want: list[dict[str, int | str]]) -> None:
    there = read_rules(ip, version, datapath)
    unwanted = [rule for rule in there if rule not in want]
    # The one that leads into our table goes first, the target of the goto last.
    for rule in sorted(unwanted, key=lambda rule: rule["action"] != FR_ACT_TO_TBL):
        ip.rule("del", family=FAMILY[version], protocol=PROTOCOL, **rule)
    for rule in want:
        if rule not in there:
            ip.rule("add", family=FAMILY[version], protocol=PROTOCOL, **rule)


def write_routes(ip: IPRoute, version: int, table: int, want: Iterable[Route]) -> None:
    gone, new = lowered_mtu.diff(read_routes(ip, version, table), want)
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


def read_routes(ip: IPRoute, version: int, table: int, ours: bool = True) -> list[Route]:
    """Those of a table; of `local` our own, or all but these."""
    messages = (m for m in ip.get_routes(family=FAMILY[version], table=table) if m.get("table") == table)
    return [parse(m, version) for m in messages if table != LOCAL or (m["proto"] == PROTOCOL) is ours]


def own_addresses() -> tuple[str, ...]:
    """All addresses of this host but those of `lo`, sorted. Raises HostError."""
    with opened() as ip:
        loopback = {link["index"] for link in ip.get_links() if link.get_attr("IFLA_IFNAME") == "lo"}
        found = (m for m in ip.get_addr() if m["index"] not in loopback)
        return tuple(sorted({m.get_attr("IFA_LOCAL") or m.get_attr("IFA_ADDRESS") for m in found}))


def read_links(ip: IPRoute) -> dict[int, Link]:
    """The MTUs of all interfaces that are up or not, by index."""
    links = {}
    for message in ip.get_links():
        mtu = message.get_attr("IFLA_MTU")
        families_of = message.get_attr("IFLA_AF_SPEC")
        inet6 = families_of.get_attr("AF_INET6") if families_of is not None else None
        settings = inet6.get_attr("IFLA_INET6_CONF") if inet6 is not None else None
        links[message["index"]] = Link(mtu, settings["mtu"] if settings else mtu)
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
    """From a route of one next hop, or from one of RTA_MULTIPATH."""
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
    wish: dict[str, Any] = {
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
        wish["multipath"] = [
            {"oif": hop.interface, "hops": hop.weight - 1, "flags": ONLINK * hop.onlink, **toward(route, hop)}
            for hop in route.nexthops
        ]
    for hop in route.nexthops if len(route.nexthops) == 1 else ():
        wish |= {"oif": hop.interface, "flags": ONLINK * hop.onlink, **toward(route, hop)}
    return {name: value for name, value in wish.items() if value not in (None, {}) and (value or name != "priority")}


def toward(route: Route, hop: Nexthop) -> dict[str, Any]:
    if hop.gateway is None:
        return {}
    if hop.gateway.version != route.prefix.version:
        return {"via": {"family": FAMILY[hop.gateway.version], "addr": str(hop.gateway)}}
    return {"gateway": str(hop.gateway)}


@contextmanager
def opened() -> Iterator[IPRoute]:
    """A routing socket; the kernel's refusals become HostError."""
    try:
        with IPRoute(strict_check=True) as ip:  # strict: the kernel picks the table out of a dump
            yield ip
    except NetlinkError as error:
        way_out = "; scentd needs CAP_NET_ADMIN" if error.code in (errno.EPERM, errno.EACCES) else ""
        raise HostError(f"routes: the kernel refused: {error}{way_out}") from error
