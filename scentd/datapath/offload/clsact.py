"""Programs on interfaces as filters of the clsact qdisc, which every kernel has.

Priority, handle and name identify a filter of ours. The functions act on the calling thread's network namespace,
raise HostError, and cannot run on a thread with a running event loop.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyroute2 import IPRoute, NetlinkError

from scentd.core.offload.coverage import Direction, Side
from scentd.errors import HostError

# TC_H_CLSACT, TC_H_MIN_*
PARENTS: dict[Direction, int] = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3, "bridged": 0xFFFFFFF3}
QDISC = 0xFFFFFFF1  # TC_H_CLSACT, TC_H_INGRESS: the parent of both qdiscs, clsact and the older ingress
# The ingress qdisc accepts requests about egress, too, but applies them to ingress.
SIDES: dict[str, tuple[Direction, ...]] = {"clsact": ("ingress", "egress", "bridged"), "ingress": ("ingress",)}
PRIORITY = 22600
HANDLES: dict[Direction, int] = {"ingress": 1, "egress": 1, "bridged": 2}
NAME = "scentd"
# The filter, its priority or qdisc, or the interface has disappeared.
ABSENT = {errno.ENOENT, errno.EINVAL, errno.ENODEV}


class NoInterface(HostError):
    """The interface is gone."""


def attach(ifindex: int, direction: Direction, program_fd: int) -> None:
    """Attach a program, or replace ours by it. Raises NoInterface."""
    with netlink(f"interface {ifindex}, {direction}") as ip:
        qdisc = qdiscs(ip).get(ifindex)
        if qdisc is None:
            add_qdisc(ip, ifindex)
        elif direction not in SIDES[qdisc]:
            raise HostError(
                f"interface {ifindex} has an ingress qdisc, which has no egress side: whoever made it must make a "
                'clsact qdisc instead, or set datapath.offload = "off"'
            )
        single = [f for f in filters(ip, ifindex, direction) if f["handle"]]  # 0: a priority as a whole
        if any(priority(f) == PRIORITY and not is_ours(f) for f in single):
            raise HostError(f"interface {ifindex}, {direction}: a tc filter of somebody else has priority {PRIORITY}")
        ip.tc(
            *("replace-filter", "bpf", ifindex),
            handle=HANDLES[direction],
            parent=PARENTS[direction],
            prio=PRIORITY,
            fd=program_fd,
            name=NAME,
            direct_action=True,
        )


def detach(ifindex: int, direction: Direction) -> None:
    """Remove our filter, and the qdisc if no filter at all is left. Having none is no error."""
    with netlink(f"interface {ifindex}, {direction}") as ip:
        qdisc = qdiscs(ip).get(ifindex)
        if qdisc is None or direction not in SIDES[qdisc] or not has_ours(ip, ifindex, direction):
            return
        try:
            ip.tc("del-filter", "bpf", ifindex, handle=HANDLES[direction], parent=PARENTS[direction], prio=PRIORITY)
            if qdisc == "clsact" and not any(filters(ip, ifindex, side) for side in PARENTS):
                ip.tc("del", "clsact", ifindex)
        except NetlinkError as error:
            if error.code not in ABSENT:
                raise


def attached_sides() -> set[Side]:
    """The sides that have a filter of ours."""
    with netlink() as ip:
        return {
            (ifindex, direction)
            for ifindex, kind in qdiscs(ip).items()
            for direction in SIDES[kind]
            if has_ours(ip, ifindex, direction)
        }


def remove() -> None:
    """Remove all filters of ours."""
    for side in attached_sides():
        detach(*side)


def add_qdisc(ip: IPRoute, ifindex: int) -> None:
    try:
        ip.tc("add", "clsact", ifindex)
    except NetlinkError as error:
        if error.code != errno.EEXIST:  # somebody was faster
            raise


def qdiscs(ip: IPRoute) -> dict[int, str]:
    """The kind of qdisc by interface: clsact or ingress."""
    return {q["index"]: q.get_attr("TCA_KIND") for q in ip.get_qdiscs() if q["parent"] == QDISC}


def filters(ip: IPRoute, ifindex: int, direction: Direction) -> list[Any]:
    return list(ip.get_filters(index=ifindex, parent=PARENTS[direction]))


def has_ours(ip: IPRoute, ifindex: int, direction: Direction) -> bool:
    return any(is_ours(f) and f["handle"] == HANDLES[direction] for f in filters(ip, ifindex, direction))


def priority(message: Any) -> int:
    return message["info"] >> 16


def is_ours(message: Any) -> bool:
    return (
        priority(message) == PRIORITY
        and message["handle"] in {HANDLES[d] for d, parent in PARENTS.items() if parent == message["parent"]}
        and message.get_attr("TCA_KIND") == "bpf"
        and message.get_attr("TCA_OPTIONS").get_attr("TCA_BPF_NAME") == NAME
    )


@contextmanager
def netlink(where: str = "tc") -> Iterator[IPRoute]:
    """A routing socket; the kernel's refusals become HostError."""
    try:
        with IPRoute() as ip:
            yield ip
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            raise NoInterface(f"{where}: the interface is gone") from error
        way_out = "; scentd needs CAP_NET_ADMIN" if error.code in (errno.EPERM, errno.EACCES) else ""
        raise HostError(f"{where}: the kernel refused: {error}{way_out}") from error
