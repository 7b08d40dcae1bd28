"""Programs on interfaces as filters of the clsact qdisc, which every kernel has.

A filter of ours is known by priority, handle and name. The functions are about the calling thread's network namespace,
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

PARENTS: dict[Direction, int] = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}  # TC_H_CLSACT, TC_H_MIN_*
QDISC = 0xFFFFFFF1  # TC_H_CLSACT, TC_H_INGRESS: the parent of clsact and of its elder sister
# The elder one takes requests about egress, too, and applies them to ingress.
SIDES: dict[str, tuple[Direction, ...]] = {"clsact": ("ingress", "egress"), "ingress": ("ingress",)}
PRIORITY = 22600
HANDLE = 1
NAME = "scentd"
ABSENT = {errno.ENOENT, errno.EINVAL, errno.ENODEV}  # filter, its priority or qdisc, interface: gone meanwhile


class NoInterface(HostError):
    """The interface is gone."""


def attach(ifindex: int, direction: Direction, program_fd: int) -> None:
    """Attach, or put the program into the place of ours. Raises NoInterface."""
    with netlink(f"interface {ifindex}, {direction}") as ip:
        there = qdiscs(ip).get(ifindex)
        if there is None:
            add_qdisc(ip, ifindex)
        elif direction not in SIDES[there]:
            raise HostError(
                f"interface {ifindex} has an ingress qdisc, which has no egress side: whoever made it must make a "
                'clsact qdisc instead, or set datapath.offload = "off"'
            )
        single = [found for found in filters(ip, ifindex, direction) if found["handle"]]  # 0: a priority as a whole
        if any(priority(found) == PRIORITY and not ours(found) for found in single):
            raise HostError(f"interface {ifindex}, {direction}: a tc filter of somebody else has priority {PRIORITY}")
        ip.tc(
            *("replace-filter", "bpf", ifindex),
            handle=HANDLE,
            parent=PARENTS[direction],
            prio=PRIORITY,
            fd=program_fd,
            name=NAME,
            direct_action=True,
        )


def detach(ifindex: int, direction: Direction) -> None:
    """Our filter, and the qdisc if no filter at all is left. Nothing there is fine."""
    with netlink(f"interface {ifindex}, {direction}") as ip:
        there = qdiscs(ip).get(ifindex)
        if there is None or direction not in SIDES[there] or not any(map(ours, filters(ip, ifindex, direction))):
            return
        try:
            ip.tc("del-filter", "bpf", ifindex, handle=HANDLE, parent=PARENTS[direction], prio=PRIORITY)
            if there == "clsact" and not any(filters(ip, ifindex, side) for side in PARENTS):
                ip.tc("del", "clsact", ifindex)
        except NetlinkError as error:
            if error.code not in ABSENT:
                raise


def attached() -> set[Side]:
    """Where filters of ours are."""
    with netlink() as ip:
        return {
            (ifindex, direction)
            for ifindex, kind in qdiscs(ip).items()
            for direction in SIDES[kind]
            if any(map(ours, filters(ip, ifindex, direction)))
        }


def remove() -> None:
    """All filters of ours."""
    for side in attached():
        detach(*side)


def add_qdisc(ip: IPRoute, ifindex: int) -> None:
    try:
        ip.tc("add", "clsact", ifindex)
    except NetlinkError as error:
        if error.code != errno.EEXIST:  # somebody was faster
            raise


def qdiscs(ip: IPRoute) -> dict[int, str]:
    """clsact or ingress, by interface."""
    return {found["index"]: found.get_attr("TCA_KIND") for found in ip.get_qdiscs() if found["parent"] == QDISC}


def filters(ip: IPRoute, ifindex: int, direction: Direction) -> list[Any]:
    return list(ip.get_filters(index=ifindex, parent=PARENTS[direction]))


def priority(message: Any) -> int:
    return message["info"] >> 16


def ours(message: Any) -> bool:
    return (
        priority(message) == PRIORITY
        and message["handle"] == HANDLE
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
