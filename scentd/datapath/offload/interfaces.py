"""The offload's programs on the host's interfaces.

Both are everywhere: a peer's packets may come in by any interface, and a rule of the host (fwmark) may send them out by
one to which no route to peers leads (core/offload/coverage.py). Not to be called on the thread of a running event loop.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from scentd.core.offload.coverage import Coverage, Interface, Side, coverage
from scentd.datapath.offload import attach, libbpf
from scentd.datapath.offload.attach import Attacher, Mechanism
from scentd.datapath.offload.clsact import NoInterface
from scentd.datapath.offload.programs import Programs

log = logging.getLogger(__name__)


class Interfaces:
    """Raises HostError."""

    def __init__(self, pin_dir: str) -> None:
        self._attacher = Attacher(pin_dir)
        self.mechanism: Mechanism | None = None
        self._wanted: set[Side] = set()
        self.stamping: list[str] = []  # names, of those to peers
        self.verifying: list[str] = []  # names

    def attach(self, programs: Programs, leading: Collection[int]) -> Coverage:
        """Put these programs on all interfaces, in the place of ours; `leading`: indexes of those to peers."""
        interfaces = attach.interfaces()
        sides: set[Side] = set()
        for interface in interfaces:
            try:
                sides |= self._serve(interface, programs)
            except NoInterface as error:  # the watch will call again
                log.info("offload: %s", error)
        self._wanted = sides
        now = coverage(interfaces, sides, leading)
        self.stamping = list(now.stamping)
        self.verifying = sorted(i.name for i in interfaces if (i.number, "ingress") in sides)
        return now

    def _serve(self, interface: Interface, programs: Programs) -> set[Side]:
        sides = sides_of(interface)
        for number, direction in sides:
            assert interface.header is not None  # or it would have no sides
            self.mechanism = self._attacher.attach(number, direction, programs.program(direction, interface.header))
        return sides

    def settle(self) -> None:
        """Take the programs off interfaces that are not for them any more, once no rule counts on them."""
        for number, direction in self._attacher.attached() - self._wanted:
            self._attacher.detach(number, direction)

    def lost(self) -> bool:
        """Whether a program that we attached is not there any more, or others should be: a bridge may be filtered now.

        The kernel tells nobody of that, nor of a new `gso_max_size`.
        """
        should = {side for interface in attach.interfaces() for side in sides_of(interface)}
        return should != self._wanted or not self._wanted <= self._attacher.attached()


def sides_of(interface: Interface) -> set[Side]:
    """The sides of an interface that programs of ours serve."""
    if interface.header is None:
        return set()
    number = interface.number
    if interface.jumbograms or not attach.finishes_checksums(interface.name):
        return {(number, "ingress")}
    return {(number, "ingress"), (number, "egress")}


def in_place(pin_dir: str, leading: Collection[int]) -> Coverage | None:
    """What programs that are there, whoever attached them, serve; None if there are none. Raises HostError."""
    if libbpf.available() is not None:
        return None
    attached = Attacher(pin_dir).attached()
    return coverage(attach.interfaces(), attached, leading) if attached else None
