"""Copies frames of some prefixes from interfaces to another one, such as a monitor port: tc filters with `mirred`.

tc, not nftables: its ingress hook does not see what is led away to be shaped (ifb.py). The filters stand behind our
verifier's and stamper's programs, and before that leading away. They change nothing of the packets and let the filters
behind them go on.
"""

from __future__ import annotations

import errno
import math
import os
import socket
import time
from collections.abc import Collection, Iterable, Sequence
from socket import htons
from typing import NamedTuple

from scentd.act.resources import ifb, tc
from scentd.act.resources.tc import Direction
from scentd.errors import HostError
from scentd.prefix import Prefix, nesting, to_prefix
from scentd.system import rtnetlink
from scentd.system.rtnetlink import CREATE, EXCL, TC, TCA_KIND, NetlinkRequest, attribute, attributes

COOKIE = b"scentd-monitor"
PARENTS: dict[Direction, int] = {"in": tc.INGRESS, "out": tc.EGRESS}
FIRST_PRIORITY = 23000  # four for each group: between our verifier's (22600) and what leads away (60004)
GROUP_MAX = 8999
RECENT = 2.0  # seconds; a burst of changes reads the filters once in that time
HARMLESS = (0, errno.EEXIST, errno.ENOENT, errno.EINVAL, errno.ENODEV)


class CopyFilter(NamedTuple):
    """A filter of ours. `to`: the interface that gets the copies. It matches sources if `side` is "in"."""

    interface: int
    side: Direction
    prefix: Prefix
    to: int
    info: int  # priority and protocol
    handle: int = 0


class Mirror:
    """The copies of one resource, which its group tells from others. Raises HostError.

    `known`: all prefixes that may be asked for.
    """

    def __init__(self, interfaces: Sequence[str], to: str, group: int, known: Collection[Prefix]) -> None:
        self._interfaces, self._to, self._group = interfaces, to, group
        self._flat = len(outermost(known)) == len(known)
        self._there: dict[CopyFilter, int] = {}  # with their handles, 0 if that is not known
        self._read_at = -math.inf

    def copied(self, prefixes: Iterable[Prefix]) -> set[Prefix]:
        """Those of which all frames are copied."""
        self._read_at = -math.inf
        wanted = list(prefixes)
        try:
            places, to = self._places(), index_of(self._to)
        except HostError:  # copy() says so
            return set()
        there: dict[tuple[int, Direction], set[Prefix]] = {place: set() for place in places}
        for found in self._read():
            if found.to == to and (found.interface, found.side) in there:
                there[found.interface, found.side].add(found.prefix)
        places_of = [(own, {p.prefixlen for p in own}) for own in there.values()]
        return {p for p in wanted if all(is_covered(p, own, lengths) for own, lengths in places_of)}

    def copy(self, prefixes: frozenset[Prefix], changed: Iterable[Prefix]) -> None:
        """Copy frames of exactly these prefixes, each frame once. `changed`: what may differ from the last call."""
        places, to = (self._places(), index_of(self._to)) if prefixes else ([], 0)
        wanted = self._filters(places, to, (p for p in changed if p in prefixes))
        known = {one: self._there[one] for one in self._filters(places, to, changed) if one in self._there}
        ended = [one._replace(handle=handle) for one, handle in known.items() if one not in wanted]
        recent = time.monotonic() - self._read_at < RECENT
        if not (recent and prefixes and self._flat and all(one.handle for one in ended)):
            wanted = self._filters(places, to, outermost(prefixes))
            known, ended = self._sort(wanted)
            self._there, self._read_at = dict(known), time.monotonic()
        new = [one for one in wanted if one not in known]
        requests = [del_filter(one) for one in ended]
        requests += [tc.new_clsact(index) for index in sorted({one.interface for one in new})]
        requests += [new_filter(one) for one in new]
        for code in rtnetlink.perform(requests):
            if code not in HARMLESS:
                self._read_at = -math.inf
                raise HostError(f"frames cannot be copied to {self._to}: {os.strerror(code)}; check CAP_NET_ADMIN")
        self._there.update(dict.fromkeys(new, 0))
        for one in ended:
            self._there.pop(one._replace(handle=0), None)

    def _filters(self, places: Sequence[tuple[int, Direction]], to: int, prefixes: Iterable[Prefix]) -> set[CopyFilter]:
        return {
            CopyFilter(i, side, p, to, info_of(self._group, p.version, side)) for p in prefixes for i, side in places
        }

    def _sort(self, wanted: Collection[CopyFilter]) -> tuple[dict[CopyFilter, int], list[CopyFilter]]:
        """(the wanted filters that are there, with their handles; the filters that must go)."""
        there: dict[CopyFilter, int] = {}
        ended = []
        for one in self._read():
            bare = one._replace(handle=0)
            if bare in wanted and bare not in there:
                there[bare] = one.handle
            else:
                ended.append(one)
        return there, ended

    def _places(self) -> list[tuple[int, Direction]]:
        return [(index_of(name), side) for name in self._interfaces for side in PARENTS]

    def _read(self) -> list[CopyFilter]:
        infos = {info_of(self._group, version, side) for version in (4, 6) for side in PARENTS}
        return [one for one in read_all() if one.info in infos]


def read_all() -> list[CopyFilter]:
    """The filters of all resources in this namespace."""
    indexes = sorted({q.interface for q in rtnetlink.qdiscs() if q.parent == tc.CLSACT})
    sides = [(index, side) for index in indexes for side in PARENTS]
    told = rtnetlink.dump(tc.RTM_GETTFILTER, [TC.pack(0, index, 0, PARENTS[side], 0) for index, side in sides])
    found = (read_filter(body, *place) for place, bodies in zip(sides, told, strict=True) for body in bodies)
    return [one for one in found if one is not None]


def remove_all() -> list[str]:
    """Remove them; return the names of the interfaces whose frames were copied."""
    found = read_all()
    rtnetlink.perform([del_filter(one) for one in found])
    ifb.remove_empty_clsact({one.interface for one in found})
    names = dict(socket.if_nameindex())
    return [f"copies of frames of {names.get(i, i)}" for i in sorted({one.interface for one in found})]


def outermost(prefixes: Iterable[Prefix]) -> list[Prefix]:
    """The prefixes that no other one covers."""
    numbers = ((p.version, int(p.network_address), p.prefixlen) for p in prefixes)
    return [to_prefix(number) for number, outer in nesting(numbers) if outer is None]


def is_covered(prefix: Prefix, others: Collection[Prefix], lengths: Collection[int]) -> bool:
    """`lengths`: of the others."""
    return any(n <= prefix.prefixlen and prefix.supernet(new_prefix=n) in others for n in lengths)


def index_of(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError as error:
        raise HostError(f"interface {interface}: does not exist; correct `mirror_to` or `interfaces`") from error


# -- messages ---------------------------------------------------------------------


def info_of(group: int, version: int, side: Direction) -> int:
    """The kernel tells u32 filters of both sides together if they have one priority; so each side has its own."""
    return FIRST_PRIORITY + 4 * group + 2 * (side == "out") + (version == 6) << 16 | htons(tc.ETHER_TYPE[version])


def body_of(one: CopyFilter) -> bytes:
    return TC.pack(0, one.interface, one.handle, PARENTS[one.side], one.info) + attribute(TCA_KIND, b"u32\0")


def new_filter(one: CopyFilter) -> NetlinkRequest:
    keys = tc.keys_of(one.prefix, tc.ADDRESS_AT[one.side][one.prefix.version])
    action = tc.send(one.to, tc.EGRESS_MIRROR, tc.TC_ACT_UNSPEC, COOKIE)
    options = tc.selector(keys) + action
    return NetlinkRequest(tc.RTM_NEWTFILTER, CREATE | EXCL, body_of(one) + attribute(tc.TCA_OPTIONS, options))


def del_filter(one: CopyFilter) -> NetlinkRequest:
    return NetlinkRequest(tc.RTM_DELTFILTER, 0, body_of(one))


def read_filter(body: bytes, interface: int, side: Direction) -> CopyFilter | None:
    """None for filters of anybody else, and of ours for other purposes."""
    _, _, handle, _, info = TC.unpack_from(body)
    options = attributes(attributes(body, TC.size).get(tc.TCA_OPTIONS, b""))
    version = next((v for v, number in tc.ETHER_TYPE.items() if htons(number) == info & 0xFFFF), None)
    if version is None or tc.TCA_U32_ACT not in options or tc.TCA_U32_SEL not in options:
        return None
    to, cookie = tc.read_send(options[tc.TCA_U32_ACT])
    prefix = tc.read_prefix(options[tc.TCA_U32_SEL], version, tc.ADDRESS_AT[side][version])
    if cookie != COOKIE or prefix is None:
        return None
    return CopyFilter(interface, side, prefix, to, info, handle)
