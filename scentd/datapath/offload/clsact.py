"""Programs on interfaces as filters of the clsact qdisc, which every kernel has.

Priority, handle and name identify a filter of ours. The functions act on the calling thread's network namespace and
raise HostError. They take many interfaces at once: a filter costs 10 us if its request travels with others
(system/rtnetlink.py), and the kernel waits for nothing.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from struct import pack

from scentd.core.offload.coverage import Direction, Side
from scentd.errors import HostError
from scentd.system import rtnetlink
from scentd.system.rtnetlink import TC, TCA_KIND, NetlinkRequest, attribute, attributes

# TC_H_CLSACT, TC_H_MIN_*
PARENTS: dict[Direction, int] = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3, "bridged": 0xFFFFFFF3}
QDISC = 0xFFFFFFF1  # TC_H_CLSACT, TC_H_INGRESS: the parent of both qdiscs, clsact and the older ingress
QDISC_HANDLE = 0xFFFF0000
# The ingress qdisc accepts requests about egress, too, but applies them to ingress.
SIDES: dict[str, tuple[Direction, ...]] = {"clsact": ("ingress", "egress", "bridged"), "ingress": ("ingress",)}
PRIORITY = 22600
ETH_P_ALL = 0x0300  # in the byte order of the network
HANDLES: dict[Direction, int] = {"ingress": 1, "egress": 1, "bridged": 2}
NAME = "scentd"
# The filter, its priority or qdisc, or the interface has disappeared.
ABSENT = {errno.ENOENT, errno.EINVAL, errno.ENODEV}

RTM_NEWQDISC, RTM_DELQDISC = 36, 37
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46
TCA_OPTIONS = 2
TCA_BPF_FD, TCA_BPF_NAME, TCA_BPF_FLAGS, ACT_DIRECT = 6, 7, 8, 1


class NoInterface(HostError):
    """The interface is gone."""


def attach(ifindex: int, direction: Direction, program_fd: int) -> None:
    """Attach a program, or replace ours by it. Raises NoInterface."""
    for error in attach_all({(ifindex, direction): program_fd}).values():
        raise error


def attach_all(programs: Mapping[Side, int]) -> dict[Side, HostError]:
    """Attach programs, or replace ours by them. Return the refusals; NoInterface is one."""
    indexes = sorted({ifindex for ifindex, _ in programs})
    made = dict(zip(indexes, rtnetlink.perform([new_qdisc(i) for i in indexes]), strict=True))
    existing = {i for i, code in made.items() if code == errno.EEXIST}
    refused: dict[Side, HostError] = {
        s: refusal(s, made[s[0]]) for s in programs if made[s[0]] and s[0] not in existing
    }
    if existing:
        kinds = qdiscs(existing)
        sides = [side for side in programs if side[0] in existing]
        refused |= {side: no_room(side) for side in sides if side[1] not in SIDES[kinds.get(side[0], "clsact")]}
        sides = [side for side in sides if side not in refused]
        refused |= {side: taken(side) for side, found in zip(sides, filters(sides), strict=True) if has_others(found)}
    wanted = [side for side in programs if side not in refused]
    codes = rtnetlink.perform([new_filter(side, programs[side]) for side in wanted])
    return refused | {side: refusal(side, code) for side, code in zip(wanted, codes, strict=True) if code}


def detach(ifindex: int, direction: Direction) -> None:
    """Remove our filter, and the qdisc if no filter at all is left. Having none is no error."""
    detach_all([(ifindex, direction)])


def detach_all(sides: Collection[Side], emptied: Collection[int] = ()) -> None:
    """Remove our filters from these sides, and their qdiscs and those of `emptied` if no filter at all is left.

    `emptied`: interfaces whose qdisc may have stayed after our filters, when links took their place.
    """
    ours = attached_sides({ifindex for ifindex, _ in sides}) & set(sides)
    remove_filters(ours)
    remove_qdiscs({ifindex for ifindex, _ in ours} | set(emptied))


def remove(emptied: Collection[int] = ()) -> None:
    """Remove all filters of ours; `emptied` as for detach_all()."""
    detach_all(attached_sides(), emptied)


def remove_filters(sides: Iterable[Side]) -> None:
    """Remove our filters, and leave the qdiscs: an interface whose qdisc is removed loses packets for a moment.

    The kernel stops the interface's queues meanwhile (dev_deactivate() in qdisc_graft()).
    """
    check(NetlinkRequest(RTM_DELTFILTER, 0, filter_body(side)) for side in sides)


def remove_qdiscs(indexes: Collection[int]) -> None:
    """Remove the clsact qdiscs that have no filter."""
    clsact = [i for i, kind in qdiscs(indexes).items() if kind == "clsact"]
    both: list[Side] = [(i, direction) for i in clsact for direction in PARENTS]
    used = {side[0] for side, found in zip(both, filters(both), strict=True) if found}
    check(NetlinkRequest(RTM_DELQDISC, 0, qdisc_body(i)) for i in clsact if i not in used)


def attached_sides(indexes: Collection[int] | None = None) -> set[Side]:
    """The sides that have a filter of ours; with `indexes` only of these interfaces."""
    sides: list[Side] = [(i, direction) for i, kind in qdiscs(indexes).items() for direction in SIDES[kind]]
    return {
        side for side, found in zip(sides, filters(sides), strict=True) if any(is_ours_at(body, side) for body in found)
    }


def check(requests: Iterable[NetlinkRequest]) -> None:
    """Carry out requests; that something is absent is no error."""
    for code in rtnetlink.perform(list(requests)):
        if code and code not in ABSENT:
            raise HostError(f"tc: the kernel refused: {said(code)}")


def qdiscs(indexes: Collection[int] | None = None) -> dict[int, str]:
    """The kind of qdisc by interface: clsact or ingress; with `indexes` only of these interfaces."""
    if indexes is not None and not indexes:
        return {}
    found = (q for q in rtnetlink.qdiscs() if q.parent == QDISC and (indexes is None or q.interface in indexes))
    return {qdisc.interface: qdisc.kind for qdisc in found}


def filters(sides: Sequence[Side]) -> list[list[bytes]]:
    """The messages of each side's filters."""
    bodies = (TC.pack(0, ifindex, 0, PARENTS[direction], 0) for ifindex, direction in sides)
    return list(rtnetlink.dump(RTM_GETTFILTER, bodies))


def has_others(found: Sequence[bytes]) -> bool:
    """Whether a filter of somebody else's has our priority. Without a handle a message is about a whole priority."""
    return any(priority(body) == PRIORITY and TC.unpack_from(body)[2] and not is_ours(body) for body in found)


def priority(body: bytes) -> int:
    return TC.unpack_from(body)[4] >> 16


def is_ours_at(body: bytes, side: Side) -> bool:
    return is_ours(body) and TC.unpack_from(body)[2] == HANDLES[side[1]]


def is_ours(body: bytes) -> bool:
    """Whether a filter is ours, for whichever direction that has this parent."""
    _, _, handle, parent, _ = TC.unpack_from(body)
    if priority(body) != PRIORITY or handle not in {HANDLES[d] for d in PARENTS if PARENTS[d] == parent}:
        return False
    found = attributes(body, TC.size)
    name = attributes(found.get(TCA_OPTIONS, b"")).get(TCA_BPF_NAME, b"")
    return rtnetlink.text(found.get(TCA_KIND, b"")) == "bpf" and rtnetlink.text(name) == NAME


# -- requests ---------------------------------------------------------------------


def new_qdisc(ifindex: int) -> NetlinkRequest:
    return NetlinkRequest(RTM_NEWQDISC, rtnetlink.CREATE | rtnetlink.EXCL, qdisc_body(ifindex))


def qdisc_body(ifindex: int) -> bytes:
    return TC.pack(0, ifindex, QDISC_HANDLE, QDISC, 0) + attribute(TCA_KIND, b"clsact\0")


def new_filter(side: Side, program_fd: int) -> NetlinkRequest:
    options = (
        attribute(TCA_BPF_FD, pack("=I", program_fd))
        + attribute(TCA_BPF_NAME, NAME.encode() + b"\0")
        + attribute(TCA_BPF_FLAGS, pack("=I", ACT_DIRECT))
    )
    body = filter_body(side) + attribute(TCA_OPTIONS, options)
    return NetlinkRequest(RTM_NEWTFILTER, rtnetlink.CREATE | rtnetlink.REPLACE, body)


def filter_body(side: Side) -> bytes:
    ifindex, direction = side
    head = TC.pack(0, ifindex, HANDLES[direction], PARENTS[direction], PRIORITY << 16 | ETH_P_ALL)
    return head + attribute(TCA_KIND, b"bpf\0")


# -- refusals ---------------------------------------------------------------------


def refusal(side: Side, code: int) -> HostError:
    ifindex, direction = side
    if code == errno.ENODEV:
        return NoInterface(f"interface {ifindex}, {direction}: the interface is gone")
    return HostError(f"interface {ifindex}, {direction}: the kernel refused: {said(code)}")


def said(code: int) -> str:
    return os.strerror(code) + ("; scentd needs CAP_NET_ADMIN" if code in (errno.EPERM, errno.EACCES) else "")


def no_room(side: Side) -> HostError:
    return HostError(
        f"interface {side[0]} has an ingress qdisc, which has no egress side: whoever made it must make a "
        'clsact qdisc instead, or set datapath.offload = "off"'
    )


def taken(side: Side) -> HostError:
    return HostError(f"interface {side[0]}, {side[1]}: a tc filter of somebody else has priority {PRIORITY}")
