"""The nodes of a network: who they are, and how their samples become one level."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from scentd.config.schema import Table, check_prefixes, suggestion
from scentd.prefix import is_address
from scentd.wire import layout

if TYPE_CHECKING:
    from scentd.config.sections import Network

NodeName = Annotated[str, Meta(pattern=r"^([A-Za-z0-9:][A-Za-z0-9._:-]{0,62})?$")]  # or an address; "" is this host
Role = Annotated[str, Meta(pattern=r"^[^;\x00-\x1f\x7f]{0,63}$")]  # wire/README.md, section 6.4: part of an item
Aggregation = Literal["mean", "max", "p95"]  # core/profile/aggregate.py


class Node(Table):
    """A node that a network has. With such a list no other node has a say in the network's levels."""

    name: Annotated[NodeName, Meta(min_length=1)]  # as samples name it: a name or an address
    addresses: list[str] = []  # its host addresses, where `name` is none: samples and events may name these, too
    role: Role = ""  # its role, whatever its samples say; default: what they say

    def mistakes(self, path: str) -> list[str]:
        return check_prefixes(self.addresses, f"{path}.addresses") + [
            f"{path}.addresses[{i}]: {text!r} is a prefix; a node has host addresses, e.g. 10.1.0.7"
            for i, text in enumerate(self.addresses)
            if "/" in text
        ]


def check_nodes(network: Network, path: str) -> list[str]:
    """The mistakes of a network's settings about nodes."""
    problems = []
    known = {*layout.METRICS.values(), *network.metrics} - {"threat"}
    for metric in network.aggregate:
        if metric == "threat":
            problems.append(f"{path}.aggregate.threat: leave it out; threats of nodes are joined, never averaged")
        elif metric not in known:
            problems.append(f"{path}.aggregate.{metric}: no such metric{suggestion(metric, sorted(known))}")
    if network.stale_after is not None and network.stale_after < network.interval:
        problems.append(f"{path}.stale_after: is less than {path}.interval, so every sample would be stale; raise it")
    if 0 < network.outlier_factor < 2 or network.outlier_factor == math.inf:
        problems.append(f"{path}.outlier_factor: write 2 or more, or 0 to suspect no node because of the others")
    return problems + check_node_names(network, path) + check_roles(network, path)


def check_node_names(network: Network, path: str) -> list[str]:
    """Each name and address belongs to one node."""
    owners: dict[str, int] = {}
    return [
        f"{path}.node[{i}]: {name} is {path}.node[{owners[name]}], too; name each once"
        for i, node in enumerate(network.node)
        for name in dict.fromkeys([node.name, *node.addresses])
        if owners.setdefault(name, i) != i
    ]


def check_roles(network: Network, path: str) -> list[str]:
    """A role is sent in characteristics, so it may not be a node."""
    hosts = {source.node.lower() for source in network.source if source.node}
    hosts |= {name.lower() for node in network.node for name in (node.name, *node.addresses)}
    roles = [(f"{path}.node[{i}].role", node.role) for i, node in enumerate(network.node)]
    roles += [(f"{path}.source[{i}].role", source.role) for i, source in enumerate(network.source)]
    return [
        f"{at}: {role!r} is a node, and a role goes to all peers; write what several nodes may be: db, web, cache"
        for at, role in roles
        if role.lower() in hosts or is_address(role)
    ]
