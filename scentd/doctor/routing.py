"""What `scentd doctor` says of the host's own routing: whether there is room for scents, and who may go astray."""

from __future__ import annotations

from scentd.config.sections import Config, stamped_peers
from scentd.core import mirrored_rules
from scentd.core.mirrored_rules import FRA_UID_RANGE
from scentd.datapath.host import routes
from scentd.datapath.host.routes import HostRouting
from scentd.doctor.examine import Check
from scentd.errors import HostError

TITLE = "routing rules"


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
