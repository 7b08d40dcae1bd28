"""Reads and writes the kernel's `ip rule`s. Ours are those with our PROTOCOL, at whatever priority.

A rule of ours has the selectors of one of the host's byte for byte, with attributes that pyroute2 may not know. So the
messages are made here (linux/fib_rules.h). A rule of ours is deleted by its priority and protocol: each has its own.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from struct import Struct

from scentd.core.mirrored_rules import GOTO, NOP, NUMBER, STATE_FLAGS, TO_TABLE, Block, Match, RoutingRule
from scentd.datapath.host.netlink_watch import messages
from scentd.errors import HostError

FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
PROTOCOL = 83  # RTA_PROTOCOL and FRA_PROTOCOL of our routes and rules; unassigned in /etc/iproute2/rt_protos
ERROR_CODE = Struct("=i")
NETLINK_HEADER, RULE_HEADER, ATTRIBUTE = Struct("=IHHII"), Struct("=8BI"), Struct("=HH")
NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
REQUEST, ACK, DUMP, CREATE, EXCL = 1, 4, 0x300, 0x400, 0x200
FRA_GOTO, FRA_PRIORITY, FRA_FLOW, FRA_SUPPRESS_IFGROUP, FRA_SUPPRESS_PREFIXLEN = 4, 6, 11, 13, 14
FRA_TABLE, FRA_PAD, FRA_PROTOCOL = 15, 18, 21
NONE = 0xFFFFFFFF  # no suppressor
ANSWER = 1 << 16  # bytes


class RuleSocket:
    """A routing socket for rules, of the calling thread's network namespace."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._sequence = count(1)

    def close(self) -> None:
        self._socket.close()

    def read(self, version: int) -> tuple[list[RoutingRule], list[RoutingRule]]:
        """(the host's rules, ours), in the order in which the kernel asks them."""
        host: list[RoutingRule] = []
        ours: list[RoutingRule] = []
        for kind, data in self._ask(RTM_GETRULE, REQUEST | DUMP, RULE_HEADER.pack(FAMILY[version], *[0] * 8)):
            if kind == RTM_NEWRULE:
                rule, protocol = parse(data)
                (ours if protocol == PROTOCOL else host).append(rule)
        return host, ours

    def add(self, version: int, rule: RoutingRule) -> None:
        self._ask(RTM_NEWRULE, REQUEST | ACK | CREATE | EXCL, encode(version, rule))

    def delete(self, version: int, rule: RoutingRule) -> None:
        """Delete our rule of this priority; one that is gone is no error."""
        header = RULE_HEADER.pack(FAMILY[version], *[0] * 8)
        try:
            self._ask(RTM_DELRULE, REQUEST | ACK, header + own_attributes(rule))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    def _ask(self, kind: int, flags: int, body: bytes) -> list[tuple[int, bytes]]:
        """(type, body) of the kernel's answers. Raises OSError if it refuses."""
        sequence = next(self._sequence)
        head = NETLINK_HEADER.pack(NETLINK_HEADER.size + len(body), kind, flags, sequence, 0)
        self._socket.send(head + body)
        answers: list[tuple[int, bytes]] = []
        while True:
            data = self._socket.recv(ANSWER)
            for answer, at in messages(data, NETLINK_HEADER.size):
                length = NETLINK_HEADER.unpack_from(data, at)[0]
                content = data[at + NETLINK_HEADER.size : at + length]
                if answer == NLMSG_DONE:
                    return answers
                if answer == NLMSG_ERROR:
                    (code,) = ERROR_CODE.unpack_from(content)
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return answers
                answers.append((answer, content))


def parse(data: bytes) -> tuple[RoutingRule, int]:
    """A rule and its protocol, from a message behind the netlink header."""
    _, dst_len, src_len, tos, table, _, _, action, flags = RULE_HEADER.unpack_from(data)
    attributes = dict(read_attributes(data[RULE_HEADER.size :]))

    def take(kind: int, default: int = 0) -> int:
        return NUMBER.unpack(attributes.pop(kind))[0] if kind in attributes else default

    priority, goto, table, realms = take(FRA_PRIORITY), take(FRA_GOTO), take(FRA_TABLE, table), take(FRA_FLOW)
    least, group = take(FRA_SUPPRESS_PREFIXLEN, NONE), take(FRA_SUPPRESS_IFGROUP, NONE)
    protocol = attributes.pop(FRA_PROTOCOL, b"\0")[0]
    attributes.pop(FRA_PAD, None)
    match = Match(flags & ~STATE_FLAGS, dst_len, src_len, tos, tuple(sorted(attributes.items())))
    is_lookup = action == TO_TABLE
    least, group = (-1 if number == NONE or not is_lookup else number for number in (least, group))
    return RoutingRule(priority, action, match, table if is_lookup else 0, goto, least, group, realms), protocol


def read_attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, at)
        yield kind & 0x3FFF, data[at + ATTRIBUTE.size : at + length]
        at += max(length + 3 & ~3, ATTRIBUTE.size)


def encode(version: int, rule: RoutingRule) -> bytes:
    match = rule.match
    head = RULE_HEADER.pack(
        *(FAMILY[version], match.dst_len, match.src_len, match.tos, rule.table if rule.table < 256 else 0),
        *(0, 0, rule.action, match.flags),
    )
    body = b"".join(attribute(kind, data) for kind, data in match.attributes)
    if rule.action == TO_TABLE and rule.table:
        body += attribute(FRA_TABLE, NUMBER.pack(rule.table))
    if rule.action == GOTO:
        body += attribute(FRA_GOTO, NUMBER.pack(rule.goto))
    for kind, value in ((FRA_SUPPRESS_PREFIXLEN, rule.least), (FRA_SUPPRESS_IFGROUP, rule.group)):
        body += attribute(kind, NUMBER.pack(value)) if value >= 0 else b""
    body += attribute(FRA_FLOW, NUMBER.pack(rule.realms)) if rule.realms else b""
    return head + body + own_attributes(rule)


def own_attributes(rule: RoutingRule) -> bytes:
    return attribute(FRA_PRIORITY, NUMBER.pack(rule.priority)) + attribute(FRA_PROTOCOL, bytes([PROTOCOL]))


def attribute(kind: int, data: bytes) -> bytes:
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(data), kind) + data + bytes(-len(data) % 4)


@contextmanager
def rule_socket() -> Iterator[RuleSocket]:
    """A socket for rules; the kernel's refusals become HostError."""
    rules = RuleSocket()
    try:
        yield rules
    except OSError as error:
        way_out = "; scentd needs CAP_NET_ADMIN" if error.errno in (errno.EPERM, errno.EACCES) else ""
        raise HostError(f"ip rule: the kernel refused: {error.strerror}{way_out}") from error
    finally:
        rules.close()


class BlockWriter:
    """Replaces our rules of one family. At every moment a packet meets a mirrored rule after all that precede it in the
    host's order, or the host's own rules.

    First retreat(): the mirrored rules that change are deleted, and those behind them. Then the tables may change. Then
    advance().
    """

    def __init__(self, rules: RuleSocket, version: int, ours: Iterable[RoutingRule], want: Block) -> None:
        self._rules, self._version, self._want = rules, version, want
        self._have = list(ours)

    def retreat(self, changing: Iterable[int]) -> None:
        """Delete what has to go, and what leads into one of the `changing` tables and then on to another one."""
        keep = self._kept(set(changing))
        stamped = min(self._have, key=lambda rule: rule.priority).goto if self._have else 0
        unwanted = [rule for rule in self._have if rule not in keep]
        # Mirrored lookups go first, the last one before all; the target of the gotos goes last.
        for rule in sorted(
            unwanted, key=lambda r: (r.action != TO_TABLE or r.priority >= stamped, r.action == NOP, -r.priority)
        ):
            self._rules.delete(self._version, rule)
        self._have = [rule for rule in self._have if rule in keep]

    def advance(self, mirrored: bool = True) -> bool:
        """Add what lacks, without the mirrored rules if the tables are not as planned. Return whether anything did."""
        lacking = [r for r in (*self._want.frame, *(self._want.mirrored if mirrored else ())) if r not in self._have]
        for rule in lacking:
            self._rules.add(self._version, rule)
        return bool(lacking)

    def _kept(self, changing: set[int]) -> list[RoutingRule]:
        frame, mirrored = self._want
        extra = [rule for rule in self._have if rule not in frame and rule not in mirrored]
        if not frame or any(rule not in self._have for rule in frame):
            return []
        start, end = min(rule.priority for rule in frame), frame[0].priority
        if not all(start < rule.priority < end for rule in extra):
            return []
        first_extra = min((rule.priority for rule in extra), default=end)
        kept = []
        for i, rule in enumerate(mirrored):
            goes_on = any(other.table not in (0, rule.table) for other in mirrored[i + 1 :])
            if rule not in self._have or rule.priority >= first_extra or (rule.table in changing and goes_on):
                break
            kept.append(rule)
        return [*frame, *kept]
