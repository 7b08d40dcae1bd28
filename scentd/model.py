"""The nouns on the arrows of the flow, from a collector's sample to an actuator's action.

    collect -> Sample, Event -> score -> Statement -> sign & seal -> stamp ==> verify
        -> assemble -> Profile -> View -> decide -> Decision -> plan -> Action -> act

All are immutable values without behaviour beyond what they derive from themselves.
Times are Unix seconds (float), scores and levels are 0.0 .. 1.0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading of one metric on one node, scaled by its collector: 1.0 is full load."""

    metric: str  # a name of wire.layout.METRICS, or one given by [network.metrics]
    value: float  # 0.0 .. 1.0
    at: float
    node: str = ""  # the node's address or name; "" is this host
    role: str = ""  # what the node or application is: db, web, cache ...


@dataclass(frozen=True, slots=True)
class Event:
    """One security event. Its severity raises the threat level until `until`."""

    kind: str  # intrusion, malware, policy, anomaly
    severity: float  # 0.0 .. 1.0
    at: float
    until: float
    node: str = ""  # address of the affected node, "" if unknown
    detail: str = ""  # for the log, never sent


@dataclass(frozen=True, slots=True)
class Statement:
    """What a network says of itself in one epoch, before it is encoded and signed."""

    interval: int  # seconds until the next one is due
    overall: float | None
    levels: dict[str, float]  # metric -> 0.0 .. 1.0, quantised; a metric without data is left out
    items: frozenset[str]  # characteristics, e.g. "role=db;metric=cpu;level=high"
    affected: frozenset[Address] = frozenset()  # nodes with events; sent as pseudonyms only

    @property
    def threat(self) -> float:
        return self.levels.get("threat", 0.0)


@dataclass(frozen=True, slots=True)
class Profile:
    """A verified profile at the receiving end."""

    network: str  # the sending peer's name in our configuration
    epoch: int
    interval: int
    overall: float | None
    levels: dict[str, float]
    bloom: bytes

    @property
    def threat(self) -> float:
        return self.levels.get("threat", 0.0)


@dataclass(frozen=True, slots=True)
class View:
    """All the allocator knows of one network at one moment.

    `profiles` is newest first and never empty; `nodes` are source addresses seen
    lately in accepted packets; `affected` are those of them that the newest
    profile marks with a security event.
    """

    network: str
    profiles: tuple[Profile, ...]
    received_at: float
    glance_load: float = 0.0
    glance_threat: float = 0.0
    nodes: frozenset[Address] = frozenset()
    affected: frozenset[Address] = frozenset()
    prefixes: tuple[Prefix, ...] = field(default=())

    @property
    def profile(self) -> Profile:
        return self.profiles[0]


@dataclass(frozen=True, slots=True)
class Decision:
    """A policy fired, or a desired value was changed or released. Goes to the decision log."""

    at: float
    network: str
    policy: str
    epoch: int
    action: str  # quarantine, bandwidth, command, webhook, release ...
    target: str  # a node's address, an interface, the network's name
    before: str
    after: str
    reason: str  # the expression and the values it saw
