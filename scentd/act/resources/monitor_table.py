"""The nftables table of one monitoring resource, as text, and what a listing of it says. Pure.

It counts the packets of the monitored prefixes, and sends copies to a group of NFLOG. A packet's address is looked up
in one set for each length of prefix, the longest first, and each packet is taken once. Both chains stand outside of all
others: what comes in is seen before any rule drops it, what leaves after all have changed it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_network
from typing import Any, NamedTuple

from scentd.prefix import Prefix

FAMILY = "inet"
NAME = "scentd_monitor_"  # with the group behind it
BEFORE_ALL, AFTER_ALL = -320, 320  # the quarantine is at -310
LOG_TOGETHER = 32  # copies in one message of the kernel
Lengths = Sequence[tuple[int, int]]  # IP version, length of prefix; the longest first


class TableState(NamedTuple):
    """`marks`: the comment of each rule; `counts`: by prefix (packets, bytes)."""

    marks: Sequence[str]
    counts: Mapping[Prefix, tuple[int, int]]


def lengths_of(prefixes: Iterable[Prefix]) -> Lengths:
    return sorted({(p.version, p.prefixlen) for p in prefixes}, reverse=True)


def set_of(version: int, length: int) -> str:
    return f"ipv{version}_{length}"


def table(name: str, lengths: Lengths, log: str) -> tuple[str, str, int]:
    """(text without elements, mark in each rule, number of rules). `log`: what each rule does besides counting."""
    sets = [f"set {set_of(v, n)} {{ type ipv{v}_addr; counter; }}" for v, n in lengths]
    come = [f'iifname != "lo" {match(v, n, "saddr")} {log} accept' for v, n in lengths]
    leave = [f'oifname != "lo" {match(v, n, "daddr")} {log} accept' for v, n in lengths]
    mark = "scentd " + hashlib.sha256("\n".join((name, *come, *leave)).encode()).hexdigest()[:16]
    body = [
        *sets,
        f"chain from_peers {{ type filter hook prerouting priority {BEFORE_ALL}; policy accept",
        *(f'{rule} comment "{mark}"' for rule in come),
        "}",
        f"chain to_peers {{ type filter hook postrouting priority {AFTER_ALL}; policy accept",
        *(f'{rule} comment "{mark}"' for rule in leave),
        "}",
    ]
    return "\n".join((f"table {FAMILY} {name} {{", *body, "}")), mark, len(come) + len(leave)


def match(version: int, length: int, which: str) -> str:
    return f"{masked(version, length, which)} @{set_of(version, length)}"


def masked(version: int, length: int, which: str) -> str:
    """The first `length` bits of a packet's address: "ip saddr & 255.255.255.0"."""
    protocol, longest = ("ip", 32) if version == 4 else ("ip6", 128)
    mask = ip_network(f"{'0.0.0.0' if version == 4 else '::'}/{length}").netmask
    return f"{protocol} {which}" + ("" if length == longest else f" & {mask}")


def element_text(verb: str, name: str, prefixes: Iterable[Prefix]) -> Iterator[str]:
    """Commands: add or delete elements."""
    by_set: dict[str, list[str]] = {}
    for prefix in prefixes:
        by_set.setdefault(set_of(prefix.version, prefix.prefixlen), []).append(str(prefix.network_address))
    for set_name, addresses in by_set.items():
        yield f"{verb} element {FAMILY} {name} {set_name} {{ {', '.join(addresses)} }}"


def replacement(name: str, text: str, prefixes: Iterable[Prefix]) -> str:
    """Commands: the table anew, whether it was there or not."""
    elements = "\n".join(element_text("add", name, prefixes))
    return f"add table {FAMILY} {name}\ndelete table {FAMILY} {name}\n{text}\n{elements}\n"


def read(listing: Sequence[dict[str, Any]] | None) -> TableState:
    marks = [item["rule"].get("comment", "") for item in listing or () if "rule" in item]
    return TableState(marks, {p: count for item in listing or () if "set" in item for p, count in members(item["set"])})


def members(one: Mapping[str, Any]) -> Iterator[tuple[Prefix, tuple[int, int]]]:
    _, _, length = one["name"].partition("_")
    for element in one.get("elem", ()) if length.isdecimal() else ():
        inner = element["elem"] if isinstance(element, dict) else {"val": element}  # somebody's, without a counter
        counter = inner.get("counter") or {"packets": 0, "bytes": 0}
        yield ip_network(f"{inner['val']}/{length}"), (counter["packets"], counter["bytes"])
