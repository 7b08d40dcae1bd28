"""What `scentd doctor` says of the host's own routing: whether there is room for scents, and who may go astray."""

from __future__ import annotations

from scentd.config.sections import Config, stamped_peers
from scentd.core import mirrored_rules
from scentd.core.lowered_mtu import LOWEST_MTU
from scentd.core.mirrored_rules import FRA_UID_RANGE
from scentd.core.packet.mss import longest_segment
from scentd.datapath.host import routes
from scentd.datapath.host.routes import HostRouting
from scentd.doctor.examine import Check
from scentd.errors import HostError
from scentd.wire.carrier import CARRIERS, NATIVE

TITLE = "routing rules"
NARROW = "room for scents"
PROBING = "sysctl net.ipv4.tcp_mtu_probing=1"


def check_routing(config: Config) -> Check:
    """Whether lowered routes can follow the host's `ip rule`s."""
    if not stamped_peers(config):
        return Check(TITLE, "yes", "no packet of this host is scented", "")
    try:
        host = routes.read_host(config)
    except HostError as error:
        return Check(TITLE, "warning", str(error), "run as root")
    found = [f"IPv{version}: {text}" for version in host.rules for text in remarks(config, host, version)]
    if not found:
        return Check(TITLE, "yes", "lowered routes follow the host's rules", "")
    return Check(TITLE, "warning", "; ".join(found), "see Routing in scentd's operations text")


def check_narrow(config: Config) -> Check:
    """Whether the paths to peers carry more than what sockets send at the least, so that routes can make room."""
    if not stamped_peers(config):
        return Check(NARROW, "yes", "no packet of this host is scented")
    try:
        plan = routes.read_plan(config)
    except HostError as error:
        return Check(NARROW, "warning", str(error), "run as root")
    overhead = {version: CARRIERS[name].overhead for version, name in NATIVE.items()}
    found = [
        f"{path.prefix}: the path carries {path.full_mtu} bytes, so TCP is kept to segments of "
        f"{longest_segment(version, path.full_mtu - overhead[version])}"
        for path in plan.mtus
        if path.full_mtu - overhead[version := path.prefix.version] < LOWEST_MTU[version]
    ]
    if not found:
        return Check(NARROW, "yes", "full packets to peers leave room")
    least = " and ".join(f"{LOWEST_MTU[v] + overhead[v]} for IPv{v}" for v in overhead)
    return Check(
        NARROW,
        "warning",
        f"{'; '.join(found)}; other packets that do not fit leave without a scent",
        f"let links to peers carry at least {least} bytes; {PROBING} here keeps up connections older than the daemon",
    )


def remarks(config: Config, host: HostRouting, version: int) -> list[str]:
    place, mark = host.places[version], config.datapath.mark_stamped
    result = [f"no lowered routes: {host.problems[version]}"] if version in host.problems else []
    behind = mirrored_rules.behind(host.rules[version], place) if place else []
    for rule in host.rules[version]:
        name = f"the `ip rule` of priority {rule.priority}"
        if not rule.match.is_understood():
            result.append(f"{name} has a selector that scentd does not know: no lowered routes from there on")
        if rule not in behind and mirrored_rules.looks_at(rule, mark):
            result.append(f"{name} sees the bit datapath.mark_stamped of large packets that the queue has stamped")
        if version == 4 and dict(rule.match.attributes).get(FRA_UID_RANGE):
            result.append(f"{name} asks for users, whom the kernel does not know of packets that the queue has stamped")
    return result
