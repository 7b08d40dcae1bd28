"""The `ip rule`s of ours: a block that decides as the host's own rules would, with the lowered MTUs. Pure.

The block stands in a gap between two rules of the host, in front of its first rule if there is room. It mirrors the
rules behind it in their order. Rules before it decide without us, at the full MTU.

    p         fwmark S/S goto STAMPED   stamped packets; to END if no rule of the host looks at S
    p+1       to fe80::/10 goto END     IPv6 only: link-local, even if a peer is ::/0
    p+2       not iif lo goto END       forwarded packets, unless they are to leave room, too
    p+3 ...   MATCH lookup OURS         a rule of the host, and our table for what it looks up
              MATCH goto END            a rule that does not look a table up by itself
    END       nop                       the host's own rules follow
    ...
              goto LAST                 behind them all: for packets that have found no way
    STAMPED   MATCH lookup THEIRS       the host's rules, as a packet without the mark S meets them
    LAST      nop

MATCH has the selectors of the host's rule byte for byte. Our tables hold only routes to peers, so all other packets
come to the end. The order of the mirrored rules is that of the host's, and each table of ours finds a route if and only
if the host's rule does (core/lowered_mtu.py), so the same rule decides.

The stamp queue's verdict sets the mark S in OUTPUT, and a changed mark makes the kernel route the packet again,
past the lowered routes. A rule of the host whose mask covers S would then see another mark (`not fwmark 0xca6c` of a
VPN). STAMPED has all rules of the host once more, with S in their marks, and their own tables. It stands behind the
host's, because `ip rule del` without a priority deletes the first rule that fits.

A route with several next hops is chosen by a hash, of ports perhaps. When the kernel routes a packet again it looks at
the ports only if some rule asks for a protocol. So END asks for one if such routes lead to peers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from scentd.core.route_tables import MAIN, Lookup

LOCAL, DEFAULT = 255, 253
LAST_OF_KERNEL = 32767
PRIORITIES = 32766  # the block stands before the kernel's rule for the main table
ROOM = 16  # priorities that the block takes at least, a power of two
NOWHERE = -1  # the target of a goto to the end
# linux/fib_rules.h
TO_TABLE, GOTO, NOP = 1, 2, 3
INVERT = 2  # a flag
STATE_FLAGS = 1 | 4 | 8 | 16  # permanent, unresolved, interface not there: not part of what a rule says
FRA_DST, FRA_IIFNAME, FRA_FWMARK, FRA_FWMASK, FRA_L3MDEV = 1, 3, 10, 16, 19
FRA_SRC, FRA_TUN_ID, FRA_OIFNAME, FRA_UID_RANGE, FRA_IP_PROTO, FRA_SPORT, FRA_DPORT = 2, 12, 17, 20, 22, 23, 24
FRA_DSCP, FRA_FLOWLABEL, FRA_FLOWLABEL_MASK, FRA_SPORT_MASK, FRA_DPORT_MASK, FRA_DSCP_MASK = 25, 26, 27, 28, 29, 30
SELECTORS = {
    *(FRA_DST, FRA_SRC, FRA_IIFNAME, FRA_FWMARK, FRA_FWMASK, FRA_TUN_ID, FRA_OIFNAME, FRA_L3MDEV, FRA_UID_RANGE),
    *(FRA_IP_PROTO, FRA_SPORT, FRA_DPORT, FRA_DSCP, FRA_FLOWLABEL, FRA_FLOWLABEL_MASK),
    *(FRA_SPORT_MASK, FRA_DPORT_MASK, FRA_DSCP_MASK),
}
NUMBER = struct.Struct("=I")


class Match(NamedTuple):
    """Which packets a rule is for: fields of the kernel's header, and attributes as they are, sorted by type."""

    flags: int = 0
    dst_len: int = 0
    src_len: int = 0
    tos: int = 0
    attributes: tuple[tuple[int, bytes], ...] = ()

    def is_understood(self) -> bool:
        """Whether all of it selects packets in a way that does not depend on the rule's table."""
        return not self.flags & ~INVERT and all(kind in SELECTORS for kind, _ in self.attributes)

    def number(self, kind: int) -> int:
        data = dict(self.attributes).get(kind)
        return NUMBER.unpack(data)[0] if data else 0


EVERYTHING = Match()


@dataclass(frozen=True, slots=True)
class RoutingRule:
    """One `ip rule`, the host's or ours."""

    priority: int
    action: int
    match: Match = EVERYTHING
    table: int = 0
    goto: int = 0
    least: int = -1  # suppress_prefixlength
    group: int = -1  # suppress_ifgroup
    realms: int = 0

    def lookup(self, version: int) -> Lookup | None:
        """What the rule looks up; None if it looks nothing up, or in the table of the packet's VRF."""
        return Lookup(version, self.table, self.least, self.group) if self.action == TO_TABLE and self.table else None


KERNELS_RULES = {  # what a host has if nobody has added or removed a rule; IPv6 has no table `default`
    RoutingRule(0, TO_TABLE, table=LOCAL),
    RoutingRule(32766, TO_TABLE, table=MAIN),
    RoutingRule(32767, TO_TABLE, table=DEFAULT),
}


class Settings(NamedTuple):
    """`mark`: S; `forwarded`: forwarded packets leave room, too; `several`: a route to a peer has several next hops."""

    mark: int
    forwarded: bool = False
    several: bool = False


def are_kernels(rules: Iterable[RoutingRule]) -> bool:
    """Whether the host has no rules of its own, and none of the kernel's is missing."""
    return KERNELS_RULES - {RoutingRule(32767, TO_TABLE, table=DEFAULT)} <= set(rules) <= KERNELS_RULES


class Place(NamedTuple):
    """The priorities of a block, both included."""

    start: int
    end: int


def place(rules: Sequence[RoutingRule], wanted: int) -> Place | None:
    """The first gap after the rule for the table `local` that holds a block for these rules; None if there is none."""
    room = ROOM
    while room < len(rules) + 4:
        room *= 2
    first = next((i for i, r in enumerate(rules) if r == RoutingRule(r.priority, TO_TABLE, table=LOCAL)), None)
    if first is None:
        return None
    taken = [rule.priority for rule in rules[first:] if rule.priority < PRIORITIES] + [PRIORITIES]
    for low, high in pairwise(taken):
        if high - low > room:
            start = wanted if low < wanted and wanted + room <= high else high - room
            return Place(start, start + room - 1)
    return None


def behind(rules: Iterable[RoutingRule], place: Place) -> list[RoutingRule]:
    """The host's rules that follow the block."""
    return [rule for rule in rules if rule.priority > place.end]


def lookups(rules: Iterable[RoutingRule], version: int) -> list[Lookup]:
    """What these rules look up, in order, as far as our block can follow them."""
    order = []
    for rule in rules:
        if not rule.match.is_understood():
            break
        if lookup := rule.lookup(version):
            order.append(lookup)
    return order


def unconditional(rules: Sequence[RoutingRule], version: int) -> set[Lookup]:
    """The lookups of the rules that are for every packet; none if a goto may pass over them."""
    if any(rule.action == GOTO for rule in rules):
        return set()
    first: dict[Lookup, bool] = {}
    for rule in rules:
        if lookup := rule.lookup(version):
            first.setdefault(lookup, rule.match == EVERYTHING)
    return {lookup for lookup, is_unconditional in first.items() if is_unconditional}


class Block(NamedTuple):
    """`frame` is written before `mirrored`, and deleted after it."""

    frame: tuple[RoutingRule, ...] = ()
    mirrored: tuple[RoutingRule, ...] = ()


def block(
    version: int, rules: Sequence[RoutingRule], place: Place, tables: Mapping[Lookup, int], settings: Settings
) -> Block:
    """Our rules. `rules`: those of the host that follow `place`, in order; `tables`: ours, by what they stand for."""
    mirrored = mirror(version, rules, tables)
    stamped = for_stamped(rules, settings.mark) if any(looks_at(rule, settings.mark) for rule in rules) else []
    if not mirrored and not stamped:
        return Block()
    start, end = place
    frame = [RoutingRule(end, NOP, ANY_PROTOCOL if settings.several else EVERYTHING)]
    target = end
    if stamped:
        tail = max(LAST_OF_KERNEL, *(rule.priority for rule in rules)) + 1
        target, last = tail + 1, tail + 1 + len(stamped)
        frame += [RoutingRule(last, NOP), RoutingRule(tail, GOTO, goto=last), *number(stamped, target, last)]
    frame.append(RoutingRule(start, GOTO, marked(settings.mark, settings.mark), goto=target))
    if version == 6:
        frame.append(RoutingRule(start + 1, GOTO, LINK_LOCAL, goto=end))
    if not settings.forwarded:
        frame.append(RoutingRule(start + 2, GOTO, NOT_LOCAL, goto=end))
    return Block(tuple(frame), tuple(number(mirrored, start + 3, end)))


def mirror(version: int, rules: Iterable[RoutingRule], tables: Mapping[Lookup, int]) -> list[RoutingRule]:
    """The mirrored rules. Where the host's rule does more than look a table up, the host's own rules decide."""
    mirrored = []
    for rule in rules:
        if not rule.match.is_understood():
            break
        lookup = rule.lookup(version)
        if lookup and lookup in tables:
            mirrored.append(RoutingRule(0, TO_TABLE, rule.match, tables[lookup], realms=rule.realms))
        elif not lookup and rule.action != NOP:
            mirrored.append(RoutingRule(0, GOTO, rule.match, goto=NOWHERE))
    while mirrored and mirrored[-1].action == GOTO:
        mirrored.pop()
    return mirrored


def looks_at(rule: RoutingRule, mark: int) -> bool:
    return bool(rule.match.number(FRA_FWMASK) & mark)


def for_stamped(rules: Sequence[RoutingRule], mark: int) -> list[RoutingRule]:
    """The rules, for packets to whose mark S was added. A priority here is still that of the host's rule."""
    result = []
    for rule in rules:
        if rule.action == GOTO and not any(other.priority == rule.goto for other in rules):
            continue  # the kernel passes over a goto without a target
        value, mask = rule.match.number(FRA_FWMARK), rule.match.number(FRA_FWMASK)
        if not mask & mark:
            result.append(rule)
        elif not value & mark:
            attributes = {**dict(rule.match.attributes), FRA_FWMARK: NUMBER.pack(value | mark)}
            result.append(replace(rule, match=rule.match._replace(attributes=tuple(sorted(attributes.items())))))
        elif rule.match.flags & INVERT:  # it wants S, and is for all packets but those: for all without S
            result.append(replace(rule, match=EVERYTHING))
        else:  # never for a packet without S; its place may be the target of a goto
            result.append(RoutingRule(rule.priority, NOP))
    return result


def number(rules: Sequence[RoutingRule], first: int, end: int) -> list[RoutingRule]:
    """The rules at consecutive priorities. A goto leads to the first rule that stands for its target, or to `end`."""
    places = {rule.priority: first + i for i, rule in reversed(list(enumerate(rules)))}
    return [
        replace(rule, priority=first + i, goto=places.get(rule.goto, end) if rule.action == GOTO else 0)
        for i, rule in enumerate(rules)
    ]


def marked(value: int, mask: int) -> Match:
    return Match(attributes=((FRA_FWMARK, NUMBER.pack(value)), (FRA_FWMASK, NUMBER.pack(mask))))


NOT_LOCAL = Match(flags=INVERT, attributes=((FRA_IIFNAME, b"lo\0"),))
ANY_PROTOCOL = Match(attributes=((FRA_IP_PROTO, bytes([17])),))  # whichever: a nop matches for nothing
LINK_LOCAL = Match(dst_len=10, attributes=((FRA_DST, bytes.fromhex("fe80") + bytes(14)),))
