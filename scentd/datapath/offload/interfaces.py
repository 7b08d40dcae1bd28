"""The offload's programs on the host's interfaces.

Both programs are on every interface: a peer's packets may arrive through any, and a rule of the host (fwmark) may send
packets out through an interface that no route to peers uses. What a bridge forwards for guests both programs serve
where it leaves the bridge (bpf/bridged.h). A container host has a thousand interfaces, so a change of one costs nothing
for the others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from scentd.core.offload import encode
from scentd.core.offload.coverage import Coverage, Interface, Side, coverage
from scentd.datapath.offload import attach, libbpf
from scentd.datapath.offload.attach import Attacher, Mechanism
from scentd.datapath.offload.programs import OBJECTS, Programs
from scentd.system import rtnetlink
from scentd.system.rtnetlink import LinkMessage

LINKED = 4  # interfaces that get tcx links, those to peers first; a new link takes 8 to 12 ms, a filter 10 us


class Interfaces:
    """The programs on all interfaces. Every method may raise HostError."""

    def __init__(self, pin_dir: str) -> None:
        self._attacher = Attacher(pin_dir)
        self._programs: Programs | None = None
        self._links: dict[int, LinkMessage] = {}
        self._interfaces: list[Interface] = []
        self._wanted: dict[Side, Interface] = {}  # the sides that programs serve
        self._attached: dict[Side, Mechanism] = {}
        self._known: dict[Interface, set[Side]] = {}  # sides_of(), which asks the device
        self._to_peers: Collection[int] = ()
        self.mechanism: Mechanism | None = None  # links if there is any
        self.guests = False  # whether bridges' ports are served; before attach()
        self.stamping: list[str] = []  # names of those to peers
        self.verifying: list[str] = []  # names
        self.ports: list[str] = []  # names of the bridges' ports that are served
        self.unstamping: list[str] = []  # of these the ones by which nothing leaves stamped

    def attach(self, programs: Programs) -> None:
        """Attach these programs to all interfaces, in the place of ours."""
        self._programs = programs
        self._attached = self._attacher.attached()
        self._links = rtnetlink.links()
        self._known = {}
        self._look()
        self._attach(self._wanted)

    def follow(self, gone: Collection[int], links: Mapping[int, LinkMessage]) -> None:
        """Attach the programs to new interfaces. `gone`: indexes that others may have by now."""
        for side in [side for side in self._attached if side[0] in gone]:
            if self._attached.pop(side) == "tcx":
                self._attacher.forget(side)
        before = {index: self._links.pop(index, None) for index in gone} | {i: self._links.get(i) for i in links}
        self._links |= links
        changed = {i: sides for i, sides in self._known.items() if i.number in before}
        if all(link and i in links and links[i].is_like(link) for i, link in before.items()) and all(
            sides_of(i) == sides for i, sides in changed.items()
        ):
            return
        self._known = {i: sides for i, sides in self._known.items() if i not in changed}
        self._look()
        self._attach(self._wanted.keys() - self._attached.keys())

    def _look(self) -> None:
        self._interfaces = self._served(self._links.values())
        self._known = {i: self._known[i] if i in self._known else sides_of(i) for i in self._interfaces}
        self._wanted = {side: i for i, sides in self._known.items() for side in sides}

    def _attach(self, sides: Collection[Side]) -> None:
        if self._programs is None or not sides:
            return
        fds = {}
        for side in sides:
            header = self._wanted[side].header
            assert header is not None  # without a header the interface has no sides
            fds[side] = self._programs.program(side[1], header, self._wanted[side].port)
        linked = self._to_link()
        for side in sides:
            self._attached.pop(side, None)
        attached = self._attacher.attach_all(fds, linked)
        self._attached |= attached
        write_ports(self._programs, {number for number, direction in self._attached if direction == "bridged"})
        if gone := {number for number, _ in fds.keys() - attached.keys()}:  # the watch tells later
            self._links = {number: link for number, link in self._links.items() if number not in gone}
            self._look()

    def _to_link(self) -> set[int]:
        """The interfaces that get links. A filter is replaced by a link only on an interface to peers."""
        first = sorted((i.number for i in self._interfaces), key=lambda n: (n not in self._to_peers, n))[:LINKED]
        return {n for n in first if n in self._to_peers or self._attached.get((n, "ingress")) != "clsact"}

    def prefer(self, to_peers: Collection[int]) -> None:
        """Give the interfaces to peers links: they come before the programs of others, and filters behind them."""
        self._to_peers = to_peers
        if self._attacher.has_links:
            chosen = self._to_link() & set(to_peers)
            self._attach([s for s in self._wanted if s[0] in chosen and self._attached.get(s) == "clsact"])

    def _served(self, links: Collection[LinkMessage]) -> list[Interface]:
        return [i for i in attach.interfaces(links) if self.guests or not i.port]

    def cover(self, leading: Collection[int]) -> Coverage:
        """What the attached programs serve; `leading`: indexes of the interfaces to peers."""
        served = self._wanted.keys() & self._attached.keys()
        result = coverage(self._interfaces, served, leading)
        used = set(self._attached.values())
        self.mechanism = "tcx" if "tcx" in used else "clsact" if used else None
        self.stamping = list(result.stamping)
        self.verifying = sorted(i.name for side, i in self._wanted.items() if side[1] == "ingress" and side in served)
        ports = {i.name: (i.number, "egress") in served for i in self._interfaces if i.port}
        self.ports = sorted(ports)
        self.unstamping = sorted(name for name, stamps in ports.items() if not stamps)
        return result

    def detach_unused(self) -> None:
        """Detach programs from interfaces that must not have them any more. Change the rules first."""
        unused = self._attached.keys() - self._wanted.keys()
        self._attacher.detach_all(unused)
        for side in unused:
            del self._attached[side]

    def lacks_programs(self) -> bool:
        """Whether a program of ours was detached. The kernel does not report it."""
        missing = self._attached.keys() - self._attacher.attached_sides()
        return bool(missing) and not {number for number, _ in missing}.isdisjoint(rtnetlink.links())

    def has_changed(self) -> bool:
        """Whether different sides need a program: a bridge may be filtered now, a switch be off, `gso_max_size` be new.

        The kernel does not report all of these.
        """
        links = rtnetlink.links().values()
        return {side for i in self._served(links) for side in sides_of(i)} != self._wanted.keys()


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
    return coverage(attach.read_interfaces(), attached, leading) if attached else None
