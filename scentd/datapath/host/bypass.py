"""What passes the queue by: bridges whose packets iptables does not see, and nftables' flow tables.

The offload serves both, but for some ports. Without it their packets leave without a scent and come in unverified, and
nothing counts them.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from typing import NamedTuple

from scentd.config.sections import Config
from scentd.core.offload.coverage import may_have_guests
from scentd.datapath.offload import attach
from scentd.system import nft, rtnetlink
from scentd.system.nft import Nftables
from scentd.system.rtnetlink import LinkMessage

OFFLOAD = 'datapath.offload = "auto"'
BRIDGE = (
    f"{OFFLOAD}, or modprobe br_netfilter and sysctl net.bridge.bridge-nf-call-iptables=1 "
    "net.bridge.bridge-nf-call-ip6tables=1"
)
FLOW_TABLE = f"{OFFLOAD}, or keep packets from and to peers out of it"


class Bypass(NamedTuple):
    """`what` passes by, and the remedy."""

    what: str
    way_out: str


def read(config: Config) -> list[Bypass]:
    """What passes by of networks with nodes behind this host; nothing if they have none. Raises HostError."""
    if not has_nodes_behind(config):
        return []
    return [
        *(Bypass(f"bridge {name}: iptables does not see what it forwards", BRIDGE) for name in unseen_bridges(links())),
        *(
            Bypass(f"flow table {name}: iptables does not see packets of its flows", FLOW_TABLE)
            for name in flow_tables()
        ),
    ]


def at_ports(names: Iterable[str]) -> list[Bypass]:
    """What the offload does not stamp: the kernel would lose large UDP sends that a program has made longer."""
    what = "it takes no unfinished checksums, so what a bridge forwards by it is not stamped"
    return [Bypass(f"port {name}: {what}", f"ethtool -K {name} tx on") for name in names]


def has_nodes_behind(config: Config) -> bool:
    """Whether this host may carry packets of our networks that are not its own."""
    prefixes = [prefix for network in config.network for prefix in network.addresses]
    return config.stamp.forwarded or may_have_guests(prefixes, {address for _, address in rtnetlink.addresses()})


def links() -> list[LinkMessage]:
    """This host's interfaces. Raises HostError."""
    return list(rtnetlink.links().values())


def unseen_bridges(interfaces: list[LinkMessage]) -> dict[str, int]:
    """The bridges that forward something of which iptables sees nothing, by name, with the least MTU of their ports."""
    ports: dict[int, list[int]] = {}
    for link in interfaces:
        ports.setdefault(link.get_attr("IFLA_MASTER") or 0, []).append(link.get_attr("IFLA_MTU"))
    return {
        link.get_attr("IFLA_IFNAME"): min(ports[link["index"]])
        for link in interfaces
        if attach.kind_of(link) == "bridge"
        and len(ports.get(link["index"], ())) > 1
        and not attach.is_filtered(link.get_attr("IFLA_LINKINFO"))
    }


def flow_tables() -> list[str]:
    """Family, table and name of each."""
    if not nft.available():
        return []
    with closing(Nftables()) as tables:
        listed = (item.get("flowtable") for item in tables.run([{"list": {"flowtables": None}}]))
    return [f"{table['family']} {table['table']} {table['name']}" for table in listed if table]
