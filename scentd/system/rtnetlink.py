"""Messages of rtnetlink, a thousand at a time.

pyroute2 takes 0.4 ms to decode the message of one interface, and a round trip for each request. A container host has a
thousand interfaces. So what is done for each of them is done here: a dump of all takes 20 ms, and requests travel
together. Sockets belong to the calling thread's network namespace.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from ipaddress import ip_address
from struct import Struct, calcsize, pack, unpack_from
from typing import Any, NamedTuple

from scentd.errors import HostError
from scentd.prefix import Address

# linux/netlink.h, linux/rtnetlink.h
SOL_NETLINK, CAP_ACK, GET_STRICT_CHK = 270, 10, 12
NLMSG_ERROR, NLMSG_DONE = 2, 3
REQUEST, ACK, ECHO, REPLACE, EXCL, DUMP, CREATE = 1, 4, 8, 0x100, 0x200, 0x300, 0x400
DUMP_INTR = 16  # the dump's subject has changed meanwhile: some entries may be missing
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
IFA_ADDRESS, IFA_LOCAL = 1, 2
RTM_GETROUTE, RTA_DST, RTA_TABLE = 26, 1, 15
RTM_GETQDISC, TCA_KIND = 38, 1
LOOPBACK = 1  # the index of `lo` in every namespace
IFLA_EXT_MASK, SKIP_STATS = 29, 8

HEADER = Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
ATTRIBUTE = Struct("=HH")  # struct nlattr: length, type
LINK = Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, changed
ADDRESS = Struct("=BBBBi")  # struct ifaddrmsg: family, prefix length, flags, scope, interface
TC = Struct("=BxxxiIII")  # struct tcmsg: family, interface, handle, parent, info
ROUTE = Struct("=BBBBBBBBI")  # struct rtmsg: family, lengths of destination and source, TOS, table, protocol, ...
NESTED = 0x3FFF  # without NLA_F_NESTED, NLA_F_NET_BYTEORDER
TOGETHER = 64  # requests in one message of the socket: their answers fit its buffer
READ = 1 << 17  # bytes
TRIES = 5
NOTHING = (errno.ENODEV, errno.ENOENT)  # no such interface, no such table: nothing is there


class NetlinkRequest(NamedTuple):
    """`kind`: RTM_*; `flags`: besides REQUEST and ACK; `body`: the fixed header and the attributes."""

    kind: int
    flags: int
    body: bytes


def attribute(kind: int, value: bytes) -> bytes:
    length = ATTRIBUTE.size + len(value)
    return ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def attributes(data: bytes, at: int = 0) -> dict[int, bytes]:
    """The attributes from here to the end, by type."""
    found = {}
    while at + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, at)
        found[kind & NESTED] = data[at + ATTRIBUTE.size : at + length]
        at += max(length + 3 & ~3, ATTRIBUTE.size)
    return found


def messages(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """(type, body, the whole) of each message."""
    at = 0
    while at + HEADER.size <= len(data):
        length, kind, *_ = HEADER.unpack_from(data, at)
        yield kind, data[at + HEADER.size : at + length], data[at : at + length]
        at += max(length + 3 & ~3, HEADER.size)


def perform(requests: Sequence[NetlinkRequest]) -> list[int]:
    """Carry out requests in this order; return the error number of each, 0 for success. Raises HostError."""
    errors = []
    with opened() as end:
        for first in range(0, len(requests), TOGETHER):
            part = requests[first : first + TOGETHER]
            end.send(b"".join(packed(r, ACK, number) for number, r in enumerate(part)))
            answers: dict[int, int] = {}
            while len(answers) < len(part):
                data = end.recv(READ)
                at = 0
                while at < len(data):
                    length, kind, _, number, _ = HEADER.unpack_from(data, at)
                    if kind == NLMSG_ERROR:
                        answers[number] = -unpack_from("=i", data, at + HEADER.size)[0]
                    at += length + 3 & ~3
            errors += [answers[number] for number in range(len(part))]
    return errors


def packed(request: NetlinkRequest, flags: int, number: int) -> bytes:
    padding = bytes(-len(request.body) % 4)
    head = HEADER.pack(HEADER.size + len(request.body), request.kind, request.flags | flags | REQUEST, number, 0)
    return head + request.body + padding


def dump(kind: int, bodies: Iterable[bytes], strict: bool = False) -> Iterator[list[bytes]]:
    """For each body of a request the bodies of the messages that answer it. Raises HostError.

    `strict`: the kernel heeds what the request says.
    """
    with opened() as end:
        end.setsockopt(SOL_NETLINK, GET_STRICT_CHK, strict)
        for body in bodies:
            yield dumped(end, kind, body)


def dumped(end: socket.socket, kind: int, body: bytes) -> list[bytes]:
    for _ in range(TRIES):
        end.send(packed(NetlinkRequest(kind, DUMP, body), 0, 1))
        found, whole, done = [], True, False
        while not done:
            for answer, content, message in messages(end.recv(READ)):
                whole = whole and not HEADER.unpack_from(message)[2] & DUMP_INTR
                done = answer in (NLMSG_DONE, NLMSG_ERROR)
                if done and (code := -unpack_from("=i", content)[0]) not in (0, *NOTHING):
                    raise HostError(f"netlink: {os.strerror(code)}")
                if not done:
                    found.append(content)
        if whole:
            break
    return found


def ask(kind: int, body: bytes) -> bytes | None:
    """The body of the message that answers a question about one thing; None if it is not there. Raises HostError."""
    with opened() as end:
        end.send(packed(NetlinkRequest(kind, ECHO, body), ACK, 1))  # before Linux 6.14 a class is told only with ECHO
        found = None
        while True:
            for answer, content, _ in messages(end.recv(READ)):
                if answer != NLMSG_ERROR:
                    found = content
                elif (code := -unpack_from("=i", content)[0]) not in (0, *NOTHING):
                    raise HostError(f"netlink: {os.strerror(code)}")
                else:
                    return found


def opened() -> socket.socket:
    """A routing socket, which blocks until the kernel has answered. Raises HostError."""
    try:
        end = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    except OSError as error:
        raise HostError(f"netlink: {error.strerror}") from error
    end.setsockopt(SOL_NETLINK, CAP_ACK, 1)  # an answer does not repeat its request
    end.bind((0, 0))
    return end


# -- interfaces -------------------------------------------------------------------


def text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="surrogateescape")


def number(form: str) -> Callable[[bytes], int]:
    size = calcsize(form)
    return lambda value: unpack_from(form, value)[0] if len(value) >= size else 0


def nested(value: bytes) -> Attributes:
    return Attributes(value, 0)


# By pyroute2's names, on every level: their number there, and how to read them (linux/if_link.h).
KNOWN: dict[str, tuple[int, Callable[[bytes], Any]]] = {
    "IFLA_IFNAME": (3, text),
    "IFLA_MTU": (4, number("=I")),
    "IFLA_LINK": (5, number("=I")),
    "IFLA_MASTER": (10, number("=I")),
    "IFLA_LINKINFO": (18, nested),
    "IFLA_AF_SPEC": (26, nested),
    "IFLA_LINK_NETNSID": (37, number("=i")),
    "IFLA_GSO_MAX_SIZE": (41, number("=I")),
    "IFLA_INFO_KIND": (1, text),
    "IFLA_INFO_DATA": (2, nested),
    "IFLA_INFO_SLAVE_KIND": (4, text),
    "AF_INET6": (10, nested),
    "IFLA_INET6_CONF": (2, lambda value: {"mtu": unpack_from("=i", value, 8)[0]}),  # DEVCONF_MTU6
    "IFLA_MACVLAN_MODE": (1, number("=I")),
    "IFLA_BR_NF_CALL_IPTABLES": (36, number("=B")),
    "IFLA_BR_NF_CALL_IP6TABLES": (37, number("=B")),
}


SHAPE = [KNOWN[n][0] for n in ("IFLA_IFNAME", "IFLA_LINK", "IFLA_MASTER", "IFLA_LINKINFO", "IFLA_GSO_MAX_SIZE")]


class Attributes:
    """Attributes that are decoded when they are asked for, by pyroute2's names."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self._decoded: dict[str, Any] = {}

    @cached_property
    def _raw(self) -> dict[int, bytes]:
        return attributes(self._data, self._at)

    def get_attr(self, name: str) -> Any:
        """The value; None without such an attribute."""
        if name not in self._decoded:
            kind, decode = KNOWN[name]
            value = self._raw.get(kind)
            self._decoded[name] = None if value is None else decode(value)
        return self._decoded[name]


class LinkMessage(Attributes):
    """An interface as the kernel describes it, with what of pyroute2's message is used here."""

    def __init__(self, body: bytes) -> None:
        super().__init__(body, LINK.size)
        _, kind, index, flags, _ = LINK.unpack_from(body)
        self._fields = {"index": index, "flags": flags, "ifi_type": kind}

    def __getitem__(self, name: str) -> int:
        return self._fields[name]

    def is_like(self, other: LinkMessage) -> bool:
        """Whether nothing has changed but state, MTU and addresses."""
        return self["ifi_type"] == other["ifi_type"] and all(self._raw.get(k) == other._raw.get(k) for k in SHAPE)


def links() -> dict[int, LinkMessage]:
    """All interfaces by index. Raises HostError."""
    body = LINK.pack(0, 0, 0, 0, 0) + attribute(IFLA_EXT_MASK, pack("=I", SKIP_STATS))
    return {LINK.unpack_from(answer)[2]: LinkMessage(answer) for found in dump(RTM_GETLINK, [body]) for answer in found}


def names_of_kind(kind: str) -> list[str]:
    """The names of all interfaces of a kind such as "vrf", sorted. Raises HostError."""
    wanted = attribute(KNOWN["IFLA_LINKINFO"][0], attribute(KNOWN["IFLA_INFO_KIND"][0], kind.encode() + b"\0"))
    body = LINK.pack(0, 0, 0, 0, 0) + attribute(IFLA_EXT_MASK, pack("=I", SKIP_STATS)) + wanted
    found = [LinkMessage(answer) for answers in dump(RTM_GETLINK, [body]) for answer in answers]
    infos = [(link.get_attr("IFLA_IFNAME"), link.get_attr("IFLA_LINKINFO")) for link in found]
    # A kernel that does not know the kind gives all interfaces.
    return sorted(name for name, info in infos if info and info.get_attr("IFLA_INFO_KIND") == kind)


def address_of(body: bytes) -> Address | None:
    """The address of a message about an address."""
    found = attributes(body, ADDRESS.size)
    value = found.get(IFA_LOCAL) or found.get(IFA_ADDRESS)
    return ip_address(value) if value else None


def addresses() -> set[tuple[int, str]]:
    """(interface, address) of all addresses of this host but those of `lo`. Raises HostError."""
    [found] = dump(RTM_GETADDR, [ADDRESS.pack(0, 0, 0, 0, 0)])
    all_addresses = ((ADDRESS.unpack_from(body)[4], address_of(body)) for body in found)
    return {(index, str(address)) for index, address in all_addresses if address is not None and index != LOOPBACK}


def routes(family: int, table: int, protocol: int = 0) -> list[bytes]:
    """The messages of a table's routes; with `protocol` only of those that this one has made. Raises HostError."""
    body = ROUTE.pack(family, 0, 0, 0, 0, protocol, 0, 0, 0) + attribute(RTA_TABLE, pack("=I", table))
    [found] = dump(RTM_GETROUTE, [body], strict=True)
    return found


def destination_of(body: bytes) -> tuple[int, int]:
    """The destination of a message about a route: address and length."""
    destination = attributes(body, ROUTE.size).get(RTA_DST, b"")
    return int.from_bytes(destination, "big"), ROUTE.unpack_from(body)[1]


class Qdisc(NamedTuple):
    interface: int
    handle: int
    parent: int
    kind: str


def qdiscs() -> list[Qdisc]:
    """All qdiscs but the kernel's defaults. Raises HostError."""
    [found] = dump(RTM_GETQDISC, [TC.pack(0, 0, 0, 0, 0)])
    return [
        Qdisc(interface, handle, parent, text(attributes(body, TC.size).get(TCA_KIND, b"")))
        for body in found
        for _, interface, handle, parent, _ in [TC.unpack_from(body)]
    ]
