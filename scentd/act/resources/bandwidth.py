"""Bandwidth: the rates with which a peer is served on an interface.

Below one class for the link, HTB gives each peer its guarantee, shares what is left by priority, and equally among
peers of one priority, and gives nobody more than its ceiling. This kind sets ceilings or guarantees;
bandwidth_priority.py sets priorities. All of them on one interface are parts of one tree (htb.py).
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal, TypeVar

from scentd.act.resources import htb, tc
from scentd.act.resources.backend import Backend, BackendSetting, Refused
from scentd.act.resources.htb import RATE_MIN, HtbTree, TreeState
from scentd.act.resources.tc import HtbClass, Part
from scentd.config import units
from scentd.config.resource import Resource
from scentd.config.schema import check_positive
from scentd.config.units import Bits
from scentd.prefix import Prefix, first_owners

INTERFACE_MAX = 15  # characters


class ShapedResource(Resource, kw_only=True):
    """What the kinds have in common that set a part of a peer's class."""

    interface: str
    link: Bits  # what all peers together may have there; leave room for everybody else
    on_exit: Literal["keep", "give-back"] = "give-back"
    direction: Literal["out", "in"] = "out"  # what this host sends to the peer, or what it gets from there

    def mistakes(self, path: str) -> list[str]:
        problems = [*super().mistakes(path), *check_positive(self, path, "link")]
        if not 0 < len(self.interface) <= INTERFACE_MAX or any(c.isspace() or c in "/:" for c in self.interface):
            problems.append(f"{path}.interface: {self.interface!r} is no interface's name; write one as in `ip link`")
        return problems


class BandwidthResource(ShapedResource, tag_field="kind", tag="bandwidth", kw_only=True):
    """A peer's ceiling or guarantee, in bits per second."""

    unit: ClassVar[str] = "bit/s"
    restricts: ClassVar[bool] = True

    what: Literal["ceiling", "guarantee"] = "ceiling"
    minimum: Bits = RATE_MIN
    maximum: Bits
    normal: Bits | None = None  # default: the maximum of a ceiling, the minimum of a guarantee
    step: Bits | None = None
    fallback: Bits | None = None

    @classmethod
    def parse_amount(cls, text: str) -> float:
        return units.parse(text, "bits")

    @classmethod
    def amount_text(cls, amount: float) -> str:
        """The rate as tc and the configuration write it: 12.5mbit."""
        for unit, scale in (("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3)):
            if amount >= scale:
                return f"{amount / scale:.6g}{unit}"
        return f"{amount:.6g}bit"

    @property
    def usual(self) -> float:
        if self.normal is not None:
            return self.normal
        return self.maximum if self.what == "ceiling" else self.minimum

    def mistakes(self, path: str) -> list[str]:
        problems = super().mistakes(path)
        if self.minimum < RATE_MIN:
            problems.append(f"{path}.minimum: HTB knows no rate below 8kbit; write that or more")
        if self.maximum > self.link > 0:
            problems.append(f"{path}.maximum: is above {path}.link; lower the one or raise the other")
        return problems


Shaped = TypeVar("Shaped", bound=ShapedResource)


class ClassBackend(Backend[Shaped]):
    """Sets one part of peers' classes. Subclasses say which, and what amounts mean there."""

    def __init__(self, resource: Shaped, setting: BackendSetting) -> None:
        super().__init__(resource, setting)
        self._tree = HtbTree(resource.interface, resource.direction, resource.link)
        self._use = htb.use_of(resource.interface, resource.direction)
        self._own = {peer: tuple(own) for peer, own in first_owners(setting.peers).items() if own}
        self._prefixes = frozenset(prefix for own in self._own.values() for prefix in own)
        self._minors: Mapping[str, int] = {}
        self._read_at = -1  # what _use.changes was when the minors were read
        self._use.served[resource.name] = self._prefixes

    def observe(self) -> Mapping[str, float]:
        with self._use.lock:
            state = self._tree.read()
            self._minors = {} if state is None else minors_of(state, self._own)
            self._read_at = self._use.changes
            if state is None:
                return self.without(self._own)
            amounts = {peer: self.amount(peer, state.classes[minor]) for peer, minor in self._minors.items()}
            return {**self.without(self._own.keys() - amounts.keys()), **amounts}

    def change(self, peer: str, amount: float) -> None:
        if peer not in self._own:
            raise Refused(
                f"resource {self.resource.name}: peer {peer} has no addresses of its own; give it [[peer]].addresses "
                "that no peer before it has, or name other peers in the resource"
            )
        with self._use.lock:
            known = self._minors if self._read_at == self._use.changes else {}
            if peer not in known or not self._tree.part(known[peer], self.part(), self.value(amount)):
                self._build()
                self._tree.part(self._minors[peer], self.part(), self.value(amount))

    def _build(self) -> None:
        other = (own for name, own in self._use.served.items() if name != self.resource.name)
        usual = self.value(self.resource.usual)
        fresh = HtbClass(0, 0, RATE_MIN, self.resource.link, htb.LAST).having(self.part(), usual)
        self._minors, changes = self._tree.build(self._own, frozenset().union(*other), fresh)
        self._use.changes += bool(changes)
        self._read_at = self._use.changes
        self.setting.tally.add("bandwidth_built", changes)

    def close(self) -> None:
        if self._use.served.get(self.resource.name) is self._prefixes:
            del self._use.served[self.resource.name]

    def part(self) -> Part:
        raise NotImplementedError

    def value(self, amount: float) -> float:
        """The amount as the class has it."""
        raise NotImplementedError

    def amount(self, peer: str, one: HtbClass) -> float:
        raise NotImplementedError

    def without(self, peers: Iterable[str]) -> dict[str, float]:
        """The amounts of peers that have no class."""
        return {}

    @classmethod
    def remove_all(cls) -> list[str]:
        return htb.remove_everywhere()

    @classmethod
    def sweep(cls, resources: Sequence[Resource]) -> list[str]:
        return htb.remove_everywhere({(r.interface, r.direction) for r in resources if isinstance(r, ShapedResource)})

    @classmethod
    def notes(cls, resources: Sequence[Shaped]) -> list[str]:
        there = {name for _, name in socket.if_nameindex()}
        found = [
            f"resource {r.name}: interface {r.interface} is not there now; until it is, nothing is shared on it"
            for r in resources
            if r.interface not in there
        ]
        links: dict[tuple[str, str], ShapedResource] = {}
        for r in resources:
            first = links.setdefault((r.interface, r.direction), r)
            if first.link != r.link:
                found.append(
                    f"resource {r.name}: its link differs from that of {first.name} on {r.interface}; they "
                    "would change the one class of the link again and again: write the same"
                )
        return found


class BandwidthBackend(ClassBackend[BandwidthResource]):
    section = BandwidthResource

    def __init__(self, resource: BandwidthResource, setting: BackendSetting) -> None:
        super().__init__(resource, setting)
        self._given: dict[str, float] = {}  # amounts, which the kernel rounds to whole bytes

    def part(self) -> Part:
        return "ceiling" if self.resource.what == "ceiling" else "rate"

    def change(self, peer: str, amount: float) -> None:
        self._given[peer] = amount
        super().change(peer, amount)

    def value(self, amount: float) -> float:
        return max(amount, RATE_MIN)

    def amount(self, peer: str, one: HtbClass) -> float:
        found = one.ceiling if self.part() == "ceiling" else one.rate
        given = self._given.get(peer)
        return given if given is not None and 8.0 * tc.to_bytes(given) == found else found


def minors_of(state: TreeState, peers: Mapping[str, Sequence[Prefix]]) -> dict[str, int]:
    """peer -> the class that all its prefixes lead to; without peers of which that is not so."""
    led = state.minors()
    minors = {}
    for peer, own in peers.items():
        found = {led.get(prefix) for prefix in own}
        minor = found.pop() if len(found) == 1 else None
        if minor is not None:
            minors[peer] = minor
    return minors
