"""The offload's programs on the host's interfaces.

Both programs are on every interface: a peer's packets may arrive through any, and a rule of the host (fwmark) may send
packets out through an interface that no route to peers uses (core/offload/coverage.py). What a bridge forwards for
guests both programs serve where it leaves the bridge (bpf/bridge.h). Not to be called on the thread of a running event
loop.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from scentd.core.offload import encode
from scentd.core.offload.coverage import Coverage, Interface, Side, coverage
from scentd.datapath.offload import attach, libbpf
from scentd.datapath.offload.attach import Attacher, Mechanism
from scentd.datapath.offload.clsact import NoInterface
from scentd.datapath.offload.programs import OBJECTS, Programs

log = logging.getLogger(__name__)


class Interfaces:
    """The programs on all interfaces. Every method may raise HostError."""

    def __init__(self, pin_dir: str) -> None:
        self._attacher = Attacher(pin_dir)
        self.mechanism: Mechanism | None = None
        self._interfaces: list[Interface] = []
        self._sides: set[Side] = set()
        self.guests = False  # whether bridges' ports are served; before attach()
        self.stamping: list[str] = []  # names of those to peers
        self.verifying: list[str] = []  # names
        self.ports: list[str] = []  # names of the bridges' ports that are served
        self.unstamping: list[str] = []  # of these the ones by which nothing leaves stamped

    def attach(self, programs: Programs) -> None:
        """Attach these programs to all interfaces, in the place of ours; first to the newest, which has none."""
        self._interfaces = sorted(self._read(), reverse=True)
        sides: set[Side] = set()
        for interface in self._interfaces:
            try:
                sides |= self._serve(interface, programs)
            except NoInterface as error:  # the watch calls again
                log.info("offload: %s", error)
        write_ports(programs, {number for number, direction in sides if direction == "bridged"})
        self._sides = sides

    def _read(self) -> list[Interface]:
        return [i for i in attach.interfaces() if self.guests or not i.port]

    def cover(self, leading: Collection[int]) -> Coverage:
        """What the attached programs serve; `leading`: indexes of the interfaces to peers."""
        result = coverage(self._interfaces, self._sides, leading)
        self.stamping = list(result.stamping)
        self.verifying = sorted(i.name for i in self._interfaces if (i.number, "ingress") in self._sides)
        ports = {i.name: (i.number, "egress") in self._sides for i in self._interfaces if i.port}
        self.ports = sorted(ports)
        self.unstamping = sorted(name for name, stamps in ports.items() if not stamps)
        return result

    def _serve(self, interface: Interface, programs: Programs) -> set[Side]:
        sides = sides_of(interface)
        for number, direction in sides:
            assert interface.header is not None  # without a header the interface has no sides
            program = programs.program(direction, interface.header, interface.port)
            self.mechanism = self._attacher.attach(number, direction, program)
        return sides

    def detach_unused(self) -> None:
        """Detach programs from interfaces that must not have them any more. Change the rules first."""
        for number, direction in self._attacher.attached_sides() - self._sides:
            self._attacher.detach(number, direction)

    def lacks_programs(self) -> bool:
        """Whether a program of ours was detached. The kernel does not report it."""
        return not self._sides <= self._attacher.attached_sides()

    def has_changed(self) -> bool:
        """Whether different sides need a program: a bridge may be filtered now, a switch be off, `gso_max_size` be new.

        The kernel does not report these either.
        """
        return {side for interface in self._read() for side in sides_of(interface)} != self._sides


def sides_of(interface: Interface) -> set[Side]:
    """The sides of an interface that programs of ours serve."""
    if interface.header is None:
        return set()
    number = interface.number
    arriving: Side = number, "bridged" if interface.port else "ingress"
    if interface.jumbograms or not attach.finishes_checksums(interface.name):
        return {arriving}
    return {arriving, (number, "egress")}


def write_ports(programs: Programs, numbers: Collection[int]) -> None:
    """Tell both programs which interfaces are ports of bridges that they serve."""
    want = {encode.PAIR.pack(number): encode.PAIR.pack(1) for number in numbers}
    for name in OBJECTS:
        ports = programs.maps[f"{name}.ports"]
        removed, added = encode.diff(dict(ports.items()), want)
        ports.update_many(added)
        ports.delete_many(removed)


def read_served(pin_dir: str, leading: Collection[int]) -> Coverage | None:
    """What the attached programs serve, whichever process attached them; None without any. Raises HostError."""
    if libbpf.available() is not None:
        return None
    attached = Attacher(pin_dir).attached_sides()
    return coverage(attach.interfaces(), attached, leading) if attached else None
