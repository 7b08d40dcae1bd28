"""The guard's nftables table, as text of nft(8). Pure.

It drops what a strict peer sends and nobody has verified, directly behind the place where the queue verifies and before
conntrack, which lets others restore the marks of earlier packets. The table has the flag `owner`: nobody but the guard
can change or flush it, and it goes when the guard's socket is closed. While nobody verifies, some packets come in by
exception; whether one is an answer to what this host has sent, only conntrack knows, so a second chain is behind it.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network

from scentd.core.closed import Closed, OpenException, range_text

LAYOUT = 2  # of what `create` makes and `update` changes: a guard goes on with a table of its own layout only
PRIORITY = -299  # behind the raw table (-300)
ANSWERS_PRIORITY = -199  # behind conntrack (-200)
COUNTERS = ("dropped", "excepted")
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
    "meta ipsec exists jump decrypted",
)
# What IPsec's transport mode has decrypted had the same addresses before, and was judged then. Behind a tunnel the
# addresses are others'. Only a tunnel's packets have the addresses that `ipsec in` looks for.
DECRYPTED = ("ipsec in ip saddr != 255.255.255.255 return", "ipsec in ip6 saddr != :: return", "accept")


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
    """The commands that make an existing table fit, in one transaction. Its chains stay: queued packets survive it."""
    commands = [f"flush table inet {name}", *(f"flush set inet {name} strict{version}" for version in (4, 6))]
    if closed is None:
        return "\n".join(commands)
    for version in (4, 6):
        if ranges := [range_text(r) for r in closed.strict if r[0] == version]:
            commands.append(f"add element inet {name} strict{version} {{ {', '.join(ranges)} }}")
    commands.append(f"add chain inet {name} decrypted")
    rules = [("decrypted", rule) for rule in DECRYPTED]
    rules += [("guard", rule) for rule in guard_rules(closed, "ours")]
    rules += [("ours", rule) for rule in destination_rules(closed, "unverified")]
    if not verifying:
        rules += [("unverified", exception_rule(e)) for e in closed.exceptions]
        if any(e.direction == "out" for e in closed.exceptions):
            commands += [f"add chain inet {name} {chain}" for chain in (answers_chain(), "late", "answered")]
            rules += [("answers", rule) for rule in guard_rules(closed, "late")]
            rules += [("late", rule) for rule in destination_rules(closed, "answered")]
            rules += [("answered", rule) for e in inward_first(closed.exceptions) for rule in answer_rules(e)]
    elif closed.overload_open:
        rules.append(("unverified", "counter name excepted accept"))
    rules.append(("unverified", "counter name dropped drop"))
    return "\n".join(commands + [f"add rule inet {name} {chain} {rule}" for chain, rule in rules])


def answers_chain() -> str:
    return f"answers {{ type filter hook prerouting priority {ANSWERS_PRIORITY}; policy accept; }}"


def guard_rules(closed: Closed, then: str) -> list[str]:
    """From the cheapest to the dearest: almost every packet ends at the first, or at one of the last two."""
    return [
        f"meta mark & {closed.mark:#x} == {closed.mark:#x} accept",
        f"ip saddr @strict4 jump {then}",
        f"ip6 saddr @strict6 jump {then}",
    ]


def destination_rules(closed: Closed, then: str) -> list[str]:
    """For packets of strict peers that nobody has verified."""
    rules = list(ALWAYS)
    if closed.whole_host:
        rules.append(f"fib daddr type local goto {then}")
    rules += [f"{PROTOCOL[ip_network(n).version]} daddr {n} goto {then}" for n in closed.networks]
    return rules


def exception_rule(exception: OpenException) -> str:
    """Answers are counted behind conntrack."""
    if exception.direction == "in":
        return f"{source_of(exception)} dport {exception.port} counter name excepted accept"
    return f"{source_of(exception)} sport {exception.port} accept"


def answer_rules(exception: OpenException) -> list[str]:
    """By the state of a connection that this host began, never by the other end's port alone."""
    if exception.direction == "in":
        return [f"{source_of(exception)} dport {exception.port} accept"]
    source = f"{source_of(exception)} sport {exception.port}"
    return [
        f"{source} ct state established ct direction reply counter name excepted accept",
        f"{source} counter name dropped drop",
    ]


def inward_first(exceptions: Iterable[OpenException]) -> list[OpenException]:
    """No drop of another exception may come before what lets a packet in."""
    return sorted(exceptions, key=lambda e: e.direction)


def source_of(exception: OpenException) -> str:
    return f"{PROTOCOL[ip_network(exception.prefix).version]} saddr {exception.prefix} {exception.protocol}"
