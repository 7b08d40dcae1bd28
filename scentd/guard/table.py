"""The guard's nftables table, as text of nft(8). Pure.

It drops what a strict peer sends and nobody has verified, directly behind the place where the queue verifies. The table
has the flag `owner`: nobody but the guard can change or flush it, and it goes when the guard's socket is closed. While
nobody verifies, some packets come in by exception.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_network

from scentd.core.closed import Closed, OpenException, Range

LAYOUT = 1  # of what `create` makes and `update` changes: a guard goes on with a table of its own layout only
PRIORITY = -149  # behind the mangle table (-150)
COUNTERS = ("dropped", "excepted")
ADDRESS = {4: IPv4Address, 6: IPv6Address}
PROTOCOL = {4: "ip", 6: "ip6"}
# What a host needs to have addresses and neighbours at all, and path MTU discovery: RFC 4861, 2710, 3810, 8415, 2131.
ALWAYS = (
    "iif lo accept",
    "meta iifkind vrf accept",  # the second time that these packets come by
    "fib daddr type { broadcast, multicast } accept",
    "icmpv6 type { 133, 134, 135, 136, 137 } ip6 hoplimit 255 accept",
    "icmpv6 type { 130, 131, 132, 143 } ip6 hoplimit 1 accept",
    "icmp type destination-unreachable icmp code 4 accept",
    "icmpv6 type packet-too-big accept",
    "udp sport { 67, 68 } udp dport { 67, 68 } accept",
    "udp sport { 546, 547 } udp dport { 546, 547 } accept",
)


def create(name: str, closed: Closed, verifying: bool) -> str:
    """The commands that make the table. `verifying`: a daemon verifies, so there are no exceptions."""
    return "\n".join(
        (
            f"add table inet {name} {{ flags owner; }}",
            *(f"add counter inet {name} {counter}" for counter in COUNTERS),
            f"add set inet {name} strict4 {{ type ipv4_addr; flags interval; }}",
            f"add set inet {name} strict6 {{ type ipv6_addr; flags interval; }}",
            f"add chain inet {name} unverified",
            f"add chain inet {name} ours",
            f"add chain inet {name} guard {{ type filter hook prerouting priority {PRIORITY}; policy accept; }}",
            update(name, closed, verifying),
        )
    )


def update(name: str, closed: Closed | None, verifying: bool) -> str:
    """The commands that make an existing table fit, in one transaction. Its chain stays: queued packets survive it."""
    commands = [f"flush chain inet {name} {chain}" for chain in ("guard", "ours", "unverified")]
    commands += [f"flush set inet {name} strict{version}" for version in (4, 6)]
    if closed is None:
        return "\n".join(commands)
    for version in (4, 6):
        if ranges := [range_text(r) for r in closed.strict if r[0] == version]:
            commands.append(f"add element inet {name} strict{version} {{ {', '.join(ranges)} }}")
    rules = [("guard", rule) for rule in guard_rules(closed)]
    rules += [("ours", rule) for rule in destination_rules(closed)]
    if not verifying:
        rules += [("unverified", exception_rule(e)) for e in closed.exceptions]
    elif closed.overload_open:
        rules.append(("unverified", "counter name excepted accept"))
    rules.append(("unverified", "counter name dropped drop"))
    return "\n".join(commands + [f"add rule inet {name} {chain} {rule}" for chain, rule in rules])


def guard_rules(closed: Closed) -> list[str]:
    """From the cheapest to the dearest: almost every packet ends at the first, or at one of the last two."""
    return [
        f"meta mark & {closed.mark:#x} == {closed.mark:#x} accept",
        "ip saddr @strict4 jump ours",
        "ip6 saddr @strict6 jump ours",
    ]


def destination_rules(closed: Closed) -> list[str]:
    """For packets of strict peers that nobody has verified."""
    rules = list(ALWAYS)
    if closed.whole_host:
        rules.append("fib daddr type local goto unverified")
    rules += [f"{PROTOCOL[ip_network(n).version]} daddr {n} goto unverified" for n in closed.networks]
    return rules


def exception_rule(exception: OpenException) -> str:
    """By the port of this host; or by the state of a connection that this host began, never by its port alone."""
    source = f"{PROTOCOL[ip_network(exception.prefix).version]} saddr {exception.prefix}"
    if exception.direction == "in":
        return f"{source} {exception.protocol} dport {exception.port} counter name excepted accept"
    return (
        f"{source} {exception.protocol} sport {exception.port} ct state established ct direction reply "
        "counter name excepted accept"
    )


def range_text(addresses: Range) -> str:
    version, first, last = addresses
    made: Iterable[str] = (str(ADDRESS[version](n)) for n in (first, last))
    return "-".join(dict.fromkeys(made))
