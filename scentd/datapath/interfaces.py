"""The offload's programs on the host's interfaces: which are served, and which are left to the queue.

Both are everywhere: a peer's packets may come in by any interface, and a rule of the host (fwmark) may send them out by
one to which no route to peers leads. The rules leave packets to the stamper only where the routes lead, elsewhere it
finds the queue's scents; where there are no rules of the host's own (`direct`) there is no elsewhere. Not to be called
on the thread of a running event loop.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from scentd.datapath import attach, libbpf
from scentd.datapath.attach import Attacher, Interface, Mechanism
from scentd.datapath.bpfprog import Place
from scentd.datapath.clsact import NoInterface
from scentd.datapath.programs import Programs
from scentd.datapath.rules import Offloaded

log = logging.getLogger(__name__)


class Interfaces:
    """Raises HostError."""

    def __init__(self, pin_dir: str) -> None:
        self._attacher = Attacher(pin_dir)
        self._mechanism: Mechanism | None = None
        self._wanted: set[Place] = set()
        self._stamping: list[str] = []
        self.verifying: list[str] = []  # names

    def attach(self, programs: Programs, leading: Collection[int]) -> Offloaded:
        """Put these programs on all interfaces, in the places of ours; `leading`: indexes of those to peers."""
        found = attach.interfaces()
        places: set[Place] = set()
        for interface in found:
            try:
                places |= self._serve(interface, programs)
            except NoInterface as error:  # the watch will call again
                log.info("offload: %s", error)
        self._wanted = places
        self._stamping = stamping(found, places, leading)
        self.verifying = sorted(i.name for i in found if (i.number, "ingress") in places)
        return Offloaded(tuple(self._stamping), vrfs(found), is_covered(found, places))

    def _serve(self, interface: Interface, programs: Programs) -> set[Place]:
        served = places_of(interface)
        for number, direction in served:
            assert interface.header is not None  # or it would have no places
            self._mechanism = self._attacher.attach(number, direction, programs.program(direction, interface.header))
        return served

    def settle(self) -> None:
        """Take the programs off interfaces that are not for them any more, once no rule counts on them."""
        for number, direction in self._attacher.attached() - self._wanted:
            self._attacher.detach(number, direction)

    def lost(self) -> bool:
        """Whether a program that we attached is not there any more, or others should be: a bridge may be filtered now.

        The kernel tells nobody of that, nor of a new `gso_max_size`.
        """
        should = {place for interface in attach.interfaces() for place in places_of(interface)}
        return should != self._wanted or not self._wanted <= self._attacher.attached()

    def describe(self) -> dict:
        """For status."""
        return {"mechanism": self._mechanism, "egress": self._stamping, "ingress": self.verifying}


def places_of(interface: Interface) -> set[Place]:
    """The sides of an interface that programs of ours serve."""
    if interface.header is None:
        return set()
    number = interface.number
    if interface.jumbograms or not attach.finishes_checksums(interface.name):
        return {(number, "ingress")}
    return {(number, "ingress"), (number, "egress")}


def in_place(pin_dir: str, leading: Collection[int]) -> Offloaded | None:
    """What programs that are there, whoever attached them, serve; None if there are none. Raises HostError."""
    if libbpf.available() is not None:
        return None
    there = Attacher(pin_dir).attached()
    found = attach.interfaces()
    return Offloaded(tuple(stamping(found, there, leading)), vrfs(found), is_covered(found, there)) if there else None


def stamping(found: Collection[Interface], there: Collection[Place], leading: Collection[int]) -> list[str]:
    """Names of interfaces to peers that have the stamper. A name that ends in "+" is a pattern to iptables."""
    served = (i for i in found if (i.number, "egress") in there and i.number in leading)
    return sorted(i.name for i in served if not i.name.endswith("+"))


def is_covered(found: Collection[Interface], there: Collection[Place]) -> bool:
    """Whether the stamper is on every interface."""
    return all((i.number, "egress") in there for i in found)


def vrfs(found: Collection[Interface]) -> tuple[str, ...]:
    return tuple(sorted(i.name for i in found if i.vrf))
