"""The HTB tree of one interface: one class for the link, and below it a class for each peer.

The handle of the root qdisc (5ce0:) says that it is ours. A peer's filters (u32 on its addresses, the longest prefix
first) lead to its class, so the kernel holds all the state. Packets of nobody's pass through HTB's direct queue, before
all others. A class is changed in place; no packet that waits in it is lost.

Several resources use one tree, each from a thread of its own: each changes its own part of a class (`Part`) and leaves
the rest as the kernel has it. One of them at a time is inside.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from scentd.act.resources import ifb, tc
from scentd.act.resources.backend import Refused
from scentd.act.resources.tc import Direction, HtbClass, Part, PrefixFilter
from scentd.errors import HostError
from scentd.prefix import Prefix
from scentd.system import rtnetlink
from scentd.system.rtnetlink import CREATE, EXCL, TC, NetlinkRequest

LINK_MINOR = 0xFFFF  # the class of the link
RATE_MIN = 8000.0  # bits per second; HTB knows no rate of zero
RATE_SLACK = 16.0  # bits per second; HTB counts whole bytes
LAST = 7  # the lowest precedence
ROUNDS = 4  # what comes to light with a table that was unseen is mended in the next one
GONE = (errno.ENOENT, errno.EINVAL)


@dataclass(slots=True)
class TreeUse:
    """What the resources on one interface share."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    changes: int = 0  # how often classes were made or removed: what was read before may be wrong
    served: dict[str, frozenset[Prefix]] = field(default_factory=dict)  # by resource


_uses: dict[tuple[str, Direction], TreeUse] = {}


def use_of(interface: str, direction: Direction) -> TreeUse:
    return _uses.setdefault((interface, direction), TreeUse())


@dataclass(frozen=True, slots=True)
class TreeState:
    """What is below our root. `classes`: by minor, without that of the link."""

    link: HtbClass | None
    classes: Mapping[int, HtbClass]
    filters: Sequence[PrefixFilter]

    def minors(self) -> dict[Prefix, int]:
        """By prefix the class that its packets really get: the table of its length must be in use, too."""
        tables = {f.table for f in self.filters if f.table}
        return {
            f.prefix: f.minor
            for f in self.filters
            if f.prefix is not None
            and f.minor in self.classes
            and tc.table_of(f.prefix.version, f.prefix.prefixlen) in tables
        }


class HtbTree:
    """The tree for what leaves an interface, or, with "in", for what comes in there. Raises HostError, Refused.

    The calling thread's namespace counts. The caller holds the lock of use_of().
    """

    def __init__(self, interface: str, direction: Direction, link: float) -> None:
        self.interface, self.direction, self.link = interface, direction, link

    def read(self) -> TreeState | None:
        """None if there is no tree of ours, or packets do not pass through it. Refused if another's qdisc is there."""
        own = index_of(self.interface)
        index = own if self.direction == "out" else ifb.find(own)
        if index is None or not has_own_root(index, self.interface):
            return None
        state = read(index, self.direction)
        whole = state.link is not None and abs(state.link.rate - self.link) <= RATE_SLACK
        return state if whole else None

    def part(self, minor: int, part: Part, value: float) -> bool:
        """Set one part of a class; False if there is no such class. It costs two short messages."""
        index = index_of(self.interface)
        device = index if self.direction == "out" else ifb.device_of(index)
        one = None if device is None else ask_class(device, minor)
        if device is None or one is None or one.parent != tc.ROOT | LINK_MINOR:
            return False
        wanted = one.having(part, value)
        if differ(one, wanted):
            [code] = rtnetlink.perform([tc.set_class(device, wanted, self.link)])
            if code in GONE:
                return False
            self._check(code)
        return True

    def build(
        self, peers: Mapping[str, Sequence[Prefix]], others: frozenset[Prefix], fresh: HtbClass
    ) -> tuple[dict[str, int], int]:
        """Give each peer a class, and remove those of nobody. Return the minors by peer, and the number of changes.

        `peers`: no prefix is of two. `others`: prefixes that other resources serve. `fresh`: what a new class has.
        """
        index, changes = self._make_root(), 0
        for _ in range(ROUNDS):
            minors, requests = self._differences(index, peers, others, fresh)
            self._perform(index, requests)
            changes += len(requests)
            if not requests:
                return minors, changes
        raise HostError(f"interface {self.interface}: somebody else changes its classes or filters at the same time")

    def _differences(
        self, index: int, peers: Mapping[str, Sequence[Prefix]], others: frozenset[Prefix], fresh: HtbClass
    ) -> tuple[dict[str, int], list[NetlinkRequest]]:
        state = read(index, self.direction)
        if state.link is None and (state.classes or state.filters):  # a tree of an older version
            self._perform(index, [tc.del_root(index), tc.new_root(index)])
            state = TreeState(None, {}, ())
        minors = assign_minors(state, peers)
        wanted = {prefix: minors[peer] for peer, own in peers.items() for prefix in own}
        kept, ended = sort_filters(state, wanted, others)
        used = {*minors.values(), *(f.minor for f in kept)}
        there = {f.prefix for f in kept}
        new = self._filter_requests(index, state, {p: m for p, m in wanted.items() if p not in there})
        requests = [
            *self._class_requests(index, state, minors, fresh),
            *(tc.del_filter(index, f) for f in ended),
            *new,
        ]
        if not new:  # else filters that come to light may lead to these classes
            requests += [tc.del_class(index, one) for minor, one in state.classes.items() if minor not in used]
        return minors, requests

    def _class_requests(
        self, index: int, state: TreeState, minors: Mapping[str, int], fresh: HtbClass
    ) -> list[NetlinkRequest]:
        link = HtbClass(LINK_MINOR, tc.ROOT, self.link, self.link, 0)
        requests = []
        if state.link is None or differ(state.link, link):
            requests.append(tc.set_class(index, link, self.link, CREATE))
        new = [minor for minor in minors.values() if minor not in state.classes]
        classes = [fresh._replace(minor=minor, parent=tc.ROOT | LINK_MINOR) for minor in new]
        return requests + [tc.set_class(index, one, self.link, CREATE | EXCL) for one in classes]

    def _filter_requests(self, index: int, state: TreeState, new: Mapping[Prefix, int]) -> list[NetlinkRequest]:
        ready = {f.table for f in state.filters if f.table}
        lengths = {(p.version, p.prefixlen) for p in new}
        lengths |= {(f.prefix.version, f.prefix.prefixlen) for f in state.filters if f.prefix is not None}
        requests = []
        for version, length in sorted(lengths):
            if tc.table_of(version, length) not in ready:
                requests.append(tc.new_table(index, version, length))
                requests.append(tc.new_way(index, self.direction, version, length))
        return requests + [tc.new_prefix(index, self.direction, prefix, minor) for prefix, minor in new.items()]

    def _make_root(self) -> int:
        index = index_of(self.interface)
        if self.direction == "in":
            index = ifb.make(index, self.interface)
        if not has_own_root(index, self.interface):
            [code] = rtnetlink.perform([tc.new_root(index)])
            if code == errno.ENOENT:
                raise Refused(f"interface {self.interface}: this kernel has no HTB; load the module sch_htb")
            self._check(code)
        return index

    def _perform(self, index: int, requests: Sequence[NetlinkRequest]) -> None:
        for request, code in zip(requests, rtnetlink.perform(requests), strict=True):
            # A table stays in the kernel, unseen, when somebody removes all filters of its priority. If filters in it
            # keep a class in use, everything is made anew.
            if code == errno.EBUSY and request.kind == tc.RTM_DELTCLASS:
                rtnetlink.perform([tc.del_root(index), tc.new_root(index)])
                return
            if code != errno.EEXIST or request.kind != tc.RTM_NEWTFILTER:
                self._check(code)

    def _check(self, code: int) -> None:
        if code in (errno.EPERM, errno.EACCES):
            raise Refused(f"interface {self.interface}: scentd needs CAP_NET_ADMIN to limit rates")
        if code:
            raise HostError(f"interface {self.interface}: the kernel refused a class or filter: {os.strerror(code)}")


def differ(one: HtbClass, other: HtbClass) -> bool:
    rates = abs(one.rate - other.rate), abs(one.ceiling - other.ceiling)
    return max(rates) > RATE_SLACK / 2 or one.precedence != other.precedence


def assign_minors(state: TreeState, peers: Mapping[str, Sequence[Prefix]]) -> dict[str, int]:
    """peer -> class minor: the minor that its filters lead to already, else the lowest free one."""
    led = {f.prefix: f.minor for f in state.filters if f.prefix is not None and f.minor in state.classes}
    assigned: dict[str, int] = {}
    taken: set[int] = set()
    for peer, own in peers.items():
        found = {minor for p in own if (minor := led.get(p)) is not None}
        if len(found) == 1 and not found & taken:
            assigned[peer] = found.pop()
            taken.add(assigned[peer])
    in_use = {*taken, *state.classes}
    free = (minor for minor in range(1, LINK_MINOR) if minor not in in_use)
    for peer in peers:
        if peer not in assigned:
            assigned[peer] = next(free)
    return assigned


def sort_filters(
    state: TreeState, wanted: Mapping[Prefix, int], others: frozenset[Prefix]
) -> tuple[list[PrefixFilter], list[PrefixFilter]]:
    """(filters that stay, filters that must go); those that lead to tables stay and are in neither."""
    kept, ended = [], []
    seen: set[Prefix | None] = set()
    for f in state.filters:
        if f.prefix is None:
            right = False
        elif f.prefix in wanted:
            right = wanted[f.prefix] == f.minor
        else:
            right = f.prefix in others and f.minor in state.classes
        if right and f.prefix not in seen:
            seen.add(f.prefix)
            kept.append(f)
        elif not f.table:
            ended.append(f)
    return kept, ended


def ask_class(index: int, minor: int) -> HtbClass | None:
    body = rtnetlink.ask(tc.RTM_GETTCLASS, TC.pack(0, index, tc.ROOT | minor, 0, 0))
    return None if body is None else tc.read_class(body)


def read(index: int, direction: Direction) -> TreeState:
    [found] = rtnetlink.dump(tc.RTM_GETTCLASS, [TC.pack(0, index, 0, 0, 0)])
    classes = {one.minor: one for body in found if (one := tc.read_class(body)) is not None}
    [told] = rtnetlink.dump(tc.RTM_GETTFILTER, [TC.pack(0, index, 0, tc.ROOT, 0)])
    filters = [f for body in told if (f := tc.read_filter(body, direction)) is not None]
    link = classes.pop(LINK_MINOR, None)
    return TreeState(link, {m: c for m, c in classes.items() if c.parent == tc.ROOT | LINK_MINOR}, filters)


def index_of(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError as error:
        raise HostError(f"interface {interface}: does not exist; correct `interface` of the resource") from error


def has_own_root(index: int, interface: str) -> bool:
    """Whether our root qdisc exists. Refused if another's does: the kernel's own default has handle 0."""
    for qdisc in rtnetlink.qdiscs():
        if (qdisc.interface, qdisc.parent) == (index, tc.TC_H_ROOT):
            if (qdisc.handle, qdisc.kind) == (tc.ROOT, "htb"):
                return True
            if qdisc.handle:
                raise Refused(
                    f"interface {interface}: has a root qdisc that is not ours ({qdisc.kind} {qdisc.handle >> 16:x}:); "
                    "give the resource another interface, or remove the qdisc with: "
                    f"tc qdisc del dev {interface} root"
                )
    return False


def remove_everywhere(besides: Collection[tuple[str, Direction]] = ()) -> list[str]:
    """Remove our root qdiscs of this namespace, and what leads packets to them; return their names.

    `besides`: those of these interfaces stay.
    """
    removed = ifb.remove_all({name for name, direction in besides if direction == "in"})
    kept = {name for name, direction in besides if direction == "out"} | ifb.devices()
    names = {index: name for index, name in socket.if_nameindex() if name not in kept}
    having = {q.interface for q in rtnetlink.qdiscs() if (q.parent, q.handle, q.kind) == (tc.TC_H_ROOT, tc.ROOT, "htb")}
    ours = sorted(having & names.keys())
    for index, code in zip(ours, rtnetlink.perform([tc.del_root(i) for i in ours]), strict=True):
        if code not in (0, *GONE, errno.ENODEV):
            raise HostError(f"interface {names[index]}: our qdisc was not removed: {os.strerror(code)}")
        if code == 0:
            removed.append(f"qdisc htb {tc.MAJOR:x}: on {names[index]}")
    return removed
