"""Programs on interfaces as tcx links (Linux 6.6), pinned so that they outlive the process.

Interface indices are those of the calling thread's network namespace.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from scentd.core.offload.coverage import Direction, Side
from scentd.datapath.offload import bpfprog, pins
from scentd.errors import HostError

TYPES: dict[Direction, int] = {"ingress": 46, "egress": 47, "bridged": 47}  # BPF_TCX_INGRESS, BPF_TCX_EGRESS
BEFORE = 1 << 3  # BPF_F_BEFORE; alone it means before all others
PIN = re.compile(r"link-([0-9]+)-(ingress|egress|bridged)")
NOTE = re.compile(r"qdisc-([0-9]+)")


class Links:
    """The links pinned in one directory, one for each side of an interface. Every method may raise HostError."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def attach(self, ifindex: int, direction: Direction, program_fd: int) -> None:
        """Attach a program, or replace ours by it. Raises BpfError with the kernel's reason."""
        path = self.path(ifindex, direction)
        with open_link(path) as link:
            if link is not None and is_on(link, ifindex, direction):
                bpfprog.link_update(link, program_fd)
                return
            if link is not None and not is_gone(link):
                raise HostError(
                    f"{path} is attached in another network namespace: give each its own datapath.pin_dir, "
                    "or run scentd cleanup if nothing needs it any more"
                )
        link = bpfprog.link_create(program_fd, ifindex, TYPES[direction], BEFORE)
        try:
            pins.replace_pin(link, path)
        finally:
            os.close(link)

    def detach(self, ifindex: int, direction: Direction) -> None:
        """Remove our link on this interface, or the pin of a link whose interface is gone."""
        path = self.path(ifindex, direction)
        for name in (path, path + pins.NEW):  # the second after a crash
            with open_link(name) as link:
                if link is None or not (is_on(link, ifindex, direction) or is_gone(link)):
                    continue
            drop(name)

    def forget(self, ifindex: int, direction: Direction) -> None:
        """Remove the pin of a link whose interface is gone; another interface may have the index by now."""
        path = self.path(ifindex, direction)
        with open_link(path) as link:
            if link is None or not is_gone(link):
                return
        pins.unpin(path)

    def exists(self, ifindex: int, direction: Direction) -> bool:
        """Whether there is such a pin; its link may be of another namespace, or of an interface that is gone."""
        return os.path.lexists(self.path(ifindex, direction))

    def attached_sides(self) -> set[Side]:
        """The sides whose link is attached in this namespace."""
        sides: set[Side] = set()
        for name in self.names():
            side = side_of(name)
            if side is None:
                continue
            with open_link(self.path(*side)) as link:
                if link is not None and is_on(link, *side):
                    sides.add(side)
        return sides

    def is_foreign(self) -> bool:
        """Whether a link in the directory is attached in another namespace: another daemon uses the directory then."""
        for name in self.names():
            side = side_of(name)
            if side is None:
                continue
            with open_link(self.path(*side)) as link:
                if link is not None and not is_gone(link) and not is_on(link, *side):
                    return True
        return False

    def remove(self) -> None:
        """Remove every link in the directory."""
        for name in self.names():
            if PIN.match(name):
                drop(os.path.join(self.directory, name))

    def note_qdisc(self, ifindex: int) -> None:
        """Note, for the next daemon, too, that a clsact qdisc of ours has stayed: a directory is all that bpffs has."""
        os.makedirs(self.note(ifindex), mode=0o700, exist_ok=True)

    def noted_qdiscs(self) -> set[int]:
        """The interfaces of these notes."""
        return {int(match[1]) for name in self.names() if (match := NOTE.fullmatch(name))}

    def forget_qdisc(self, ifindex: int) -> None:
        if os.path.isdir(self.note(ifindex)):
            os.rmdir(self.note(ifindex))

    def note(self, ifindex: int) -> str:
        return os.path.join(self.directory, f"qdisc-{ifindex}")

    def names(self) -> list[str]:
        try:
            return os.listdir(self.directory)
        except FileNotFoundError:
            return []

    def path(self, ifindex: int, direction: Direction) -> str:
        return os.path.join(self.directory, f"link-{ifindex}-{direction}")


def side_of(name: str) -> Side | None:
    """The side whose link has this pin; None for other names."""
    match = PIN.fullmatch(name)
    return (int(match[1]), cast(Direction, match[2])) if match else None


@contextmanager
def open_link(path: str) -> Iterator[int | None]:
    fd = pins.get(path)
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def is_on(link: int, ifindex: int, direction: Direction) -> bool:
    """Whether the link is attached in this namespace: its index alone may be of another one."""
    info = bpfprog.link_info(link)
    return info.ifindex == ifindex and info.program in bpfprog.programs_on(ifindex, TYPES[direction])


def is_gone(link: int) -> bool:
    """Whether the interface is gone, and the link attached to nothing."""
    return bpfprog.link_info(link).ifindex == 0


def drop(path: str) -> None:
    """Detach a link and remove its pin. Without the first step the kernel would detach it some time later."""
    with open_link(path) as link:
        if link is not None:
            bpfprog.link_detach(link)
    pins.unpin(path)
