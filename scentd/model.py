"""The nouns on the arrows of the flow, from a source's sample to what an actuator applies.

    sources -> Samples -> score -> Statement -> issue -> Outgoing -> stamp ==packets==> verify -> Fragment
        -> assemble -> Profile -> view -> View -> decide -> Firing -> plan -> Desired, Decision, Oneshot -> act

All are immutable values without behaviour beyond what they derive from themselves. Times are Unix seconds
(float), scores and levels are 0.0 .. 1.0. What passes from one role to another (Samples, Outgoing, View, Desired)
names networks and peers as the configurations do, never by a number of this host or by a key. Values that pass in
batches do so in one of their own: IssuedEpoch, Views.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from scentd.prefix import Address, Prefix

if TYPE_CHECKING:  # workers use values of this file, and have no configuration
    from scentd.config.policy import Policy

SCHEMA = 2  # of every JSON document that leaves scentd; raised when a field changes its name or its meaning


# -- telemetry -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading of one metric on one node, scaled by its source: 1.0 is full load."""

    metric: str  # a name of wire.layout.METRICS, or one given by [network.metrics]
    value: float  # 0.0 .. 1.0
    at: float
    node: str = ""  # the node's address or name; "" is this host
    role: str = ""  # what the node or application is: db, web, cache ...


@dataclass(frozen=True, slots=True)
class SecurityEvent:
    """One security event. Its severity raises the threat level until `until`."""

    kind: str  # intrusion, malware, policy, anomaly
    severity: float  # 0.0 .. 1.0
    at: float
    until: float
    node: str = ""  # address of the affected node, "" if unknown
    detail: str = ""  # for the log, never sent


@dataclass(frozen=True, slots=True)
class Samples:
    """What one collector read for a network at one moment. A later one of the same collector replaces it."""

    network: str
    collector: str  # unique among the network's collectors; "" on a host that collects and signs
    at: float
    samples: tuple[Sample, ...] = ()
    events: tuple[SecurityEvent, ...] = ()  # that have not ended
    watched: bool = False  # a source of it looks for security events, so that none of them means no threat
    alarm: bool = False  # an event has just begun that must be told at once


# -- what is said and sent -----------------------------------------------


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


class Outgoing(Struct, frozen=True):
    """All that a stamper needs to scent a network's packets to one peer in one epoch."""

    network: str
    peer: str
    epoch: int
    key_id: bytes
    tag_key: bytes
    glance: int  # masked
    fragments: tuple[bytes, ...]
    expires: float  # Unix time after which it is too old to send


class IssuedEpoch(Struct, frozen=True):
    """A network's new epoch, for all its peers."""

    network: str
    epoch: int
    interval: float  # seconds until the next one is due
    alarm: bool  # made at once because of a security event
    outgoing: tuple[Outgoing, ...]


# -- what is received ----------------------------------------------------


class Fragment(Struct, frozen=True, tag=True):
    """The packet path accepted a fragment that it had not seen in this epoch."""

    pair: int  # this host's number of network and peer; it never leaves the host
    epoch: int
    index: int
    data: bytes
    load: float  # the glance, unmasked: 0.0 .. 1.0
    threat: float
    source: bytes


@dataclass(frozen=True, slots=True)
class Profile:
    """A verified profile at the receiving end."""

    peer: str  # the sender's name in our configuration
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
    """All that is known of one peer at one moment.

    `profiles` is newest first and never empty; `nodes` are source addresses seen
    lately in accepted packets; `affected` are those of them that the newest
    profile marks with a security event.
    """

    peer: str
    profiles: tuple[Profile, ...]
    received_at: float  # when the newest profile was complete
    glance_load: float = 0.0
    glance_threat: float = 0.0
    alarm_at: float = 0.0  # when the glance's threat rose to where it is; 0.0 while it is no alarm
    nodes: frozenset[Address] = frozenset()
    affected: frozenset[Address] = frozenset()
    prefixes: tuple[Prefix, ...] = field(default=())

    @property
    def profile(self) -> Profile:
        return self.profiles[0]


@dataclass(frozen=True, slots=True)
class Views:
    """What is known of some peers now, for one round of the policies."""

    views: tuple[View, ...]


# -- what is done about it -----------------------------------------------


@dataclass(frozen=True, slots=True)
class Firing:
    """A policy wants its action carried out now."""

    at: float
    policy: Policy
    peer: str
    epoch: int  # of the newest profile
    targets: tuple[Prefix, ...]  # what the action aims at, addresses as /32 and /128; empty: the peer as such
    values: dict[str, float | str | bool]  # what the expression saw
    reason: str
    accepted_at: float = 0.0  # when what made the policy true was accepted: the newest profile, or an alarm's glance
    alarm: bool = False  # the first firing since the peer's threat rose


@dataclass(frozen=True, slots=True)
class Desired:
    """What the host should have because of policies: by kind of action, what each resource should be.

    What identifies a resource and what it should be are the kind's own (core/allocate/actions).
    """

    kinds: Mapping[str, Mapping[Hashable, Any]] = field(default_factory=dict)

    def of(self, kind: str) -> Mapping[Any, Any]:
        return self.kinds.get(kind, {})


@dataclass(frozen=True, slots=True)
class Decision:
    """A policy fired, or a desired value was changed or released. Goes to the decision log."""

    at: float
    peer: str
    policy: str
    epoch: int
    action: str  # a kind of action, or "release"
    target: str  # a node's address, an interface, the peer's name
    before: str
    after: str
    reason: str  # the expression and the values it saw
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True)
class Oneshot:
    """Something to be carried out once: an edge action of a policy."""

    action: Any  # its section in the configuration
    decision: Decision
    firing: Firing


@dataclass(frozen=True, slots=True)
class Barred:
    """Senders whose packets are to be dropped as early as can be, all of them, until a Unix time each."""

    until: Mapping[Prefix, float]


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that happened, for whoever watches (`scentd monitor`)."""

    event: str  # epoch, alarm, profile, decision, rejected
    fields: Mapping[str, Any]
