"""The types on the arrows of the flow, from a source's sample to the desired state that an actuator applies.

    sources -> Samples -> score -> Statement -> issue -> Outgoing -> stamp ==packets==> verify -> Fragment
        -> assemble -> Profile -> view -> View -> decide -> Firing -> plan -> Desired, Decision, Oneshot -> act

All are immutable values; their only behaviour is properties of their own fields. Times are Unix seconds (float), scores
and levels are 0.0 .. 1.0. Values that pass from one role to another (Samples, Outgoing, View, Desired) name networks
and peers as the configurations do, never by a number of this host or by a key. Outgoing and View pass in batches:
IssuedEpoch, Views.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from msgspec import Meta, Struct

from scentd.prefix import Address, Prefix

if TYPE_CHECKING:  # workers use values of this file, and have no configuration
    from scentd.config.policy import Policy

SCHEMA = 2  # the version of every JSON document that leaves scentd; raised when a field changes its name or meaning


# -- telemetry -----------------------------------------------------------

SourceState = Literal["fresh", "stale", "failing", "suspect"]  # of a source at its collector, or of a node


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading of one metric on one node, scaled by its source: 1.0 is full load."""

    metric: str  # a name of wire.layout.METRICS, or one given by [network.metrics]
    value: float  # 0.0 .. 1.0
    at: float
    node: str = ""  # the node's address or name; "" is this host
    role: str = ""  # the role of the node or application: db, web, cache ...
    region: str = ""  # it is of the path to this region, and counts for nothing else


EventKind = Literal["intrusion", "malware", "policy", "anomaly"]
DETAIL_MAX = 200  # characters
HOLD_MAX = 86400.0  # seconds


class EventReport(Struct, frozen=True, forbid_unknown_fields=True):
    """What `scentd event` says of a security event."""

    network: str
    severity: Annotated[float, Meta(gt=0.0, le=1.0)]
    kind: EventKind = "intrusion"
    hold: Annotated[float, Meta(gt=0.0, le=HOLD_MAX)] | None = None  # seconds; default: the source's
    node: str = ""  # address of the affected node, "" if unknown
    detail: Annotated[str, Meta(max_length=DETAIL_MAX)] = ""


@dataclass(frozen=True, slots=True)
class SecurityEvent:
    """One security event. Its severity raises the threat level until `until`."""

    kind: EventKind
    severity: float  # 0.0 .. 1.0
    at: float
    until: float
    node: str = ""  # address of the affected node, "" if unknown
    detail: str = ""  # for `scentd monitor`, never in a profile


@dataclass(frozen=True, slots=True)
class Samples:
    """One collector's readings for a network at one moment. A later sample of the same metric, node, role and region
    replaces a sample, whoever sends it; later events of the same collector replace its events.
    """

    network: str
    collector: str  # unique among the network's; the node of samples that name none; "" where the signer collects
    at: float
    samples: tuple[Sample, ...] = ()
    events: tuple[SecurityEvent, ...] = ()  # that have not ended
    watched: bool = False  # a source looks for security events, so without an event the threat is 0.0, not unknown
    alarm: bool = False  # a security event has just begun, so a profile must be issued at once


# -- sending -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Statement:
    """A network's statement of itself in one epoch, before it is encoded and signed."""

    interval: int  # seconds until the next one is due
    overall: float | None
    levels: dict[str, float]  # metric -> 0.0 .. 1.0, quantised; a metric without data is left out
    items: frozenset[str]  # characteristics, e.g. "role=db;metric=cpu;level=high"
    affected: frozenset[Address] = frozenset()  # nodes with events; sent as pseudonyms only
    lag: int = 0  # seconds by which the network's stampers may lag behind one another

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
    glances: bytes  # masked, one for each fragment
    fragments: tuple[bytes, ...]
    expires: float  # Unix time after which it is too old to send


class IssuedEpoch(Struct, frozen=True):
    """A network's new epoch, for all its peers."""

    network: str
    epoch: int
    interval: float  # seconds until the next one is due
    alarm: bool  # issued at once because of a security event
    outgoing: tuple[Outgoing, ...]


# -- explaining: how a profile came about --------------------------------


class NodeState(Struct, frozen=True):
    """One node of a network, as its profiler knows it."""

    name: str  # "" is this host
    roles: tuple[str, ...]
    state: SourceState
    reason: str  # why it is not fresh
    age: float | None  # seconds since its newest sample; None: there has been none
    expected: bool  # [[network.node]] names it


class SampleAccount(Struct, frozen=True, kw_only=True):
    node: str  # "" is this host
    role: str
    region: str
    value: float | None  # as it came; None: not a number
    counts: float | None  # the value that it counts as; None: it is left out
    age: float  # seconds
    state: SourceState
    reason: str  # why it does not count as it is


class LevelAccount(Struct, frozen=True, kw_only=True):
    metric: str
    unit: str  # what 1.0 is; the range is always 0.0 to 1.0
    aggregation: str  # mean, max, p95; of threat: joined
    nodes: int  # that have a say
    value: float | None  # aggregated, before it is rounded to a step; None: unknown
    level: float | None  # as it is sent
    weight: float  # in the overall level
    samples: list[SampleAccount]


class GroupAccount(Struct, frozen=True, kw_only=True):
    """One metric of a role, or of the path to a region."""

    role: str
    region: str
    metric: str
    nodes: int
    level: float | None  # None: left out
    word: str  # low, medium, high
    why_not: str = ""


class EventAccount(Struct, frozen=True, kw_only=True):
    kind: str
    node: str
    severity: float


class ProfileAccount(Struct, frozen=True, kw_only=True):
    at: float  # Unix time
    steps: int
    overall: float | None
    levels: list[LevelAccount]
    groups: list[GroupAccount]
    events: list[EventAccount]
    items: list[str]
    left_out: dict[str, str]  # items, and why
    affected: list[str]


# -- receiving -----------------------------------------------------------


class Fragment(Struct, frozen=True, tag=True):
    """A fragment that the packet path has accepted, for the first time in this epoch."""

    pair: int  # this host's number of network and peer; it never leaves the host
    epoch: int
    index: int
    data: bytes
    load: float  # the glance, unmasked: 0.0 .. 1.0
    threat: float
    source: bytes
    key_ids: bytes  # 8: of the peer's key and of ours


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
    """The knowledge of one peer at one moment.

    `profiles` is newest first and never empty. `nodes` are the source addresses of packets that were accepted lately.
    `affected` are the nodes that the newest profile marks with a security event.
    """

    peer: str
    profiles: tuple[Profile, ...]
    received_at: float  # when the newest profile was complete
    glance_load: float = 0.0
    glance_threat: float = 0.0
    glance_epoch: int = 0
    alarm_at: float = 0.0  # when the glance's threat last rose; 0.0 while the glance is no alarm
    nodes: frozenset[Address] = frozenset()
    affected: frozenset[Address] = frozenset()
    prefixes: tuple[Prefix, ...] = field(default=())
    shared: tuple[Prefix, ...] = ()  # those of its addresses that other peers have, too
    signed: bytes = b""  # the newest profile as its network has signed it, in clear

    @property
    def profile(self) -> Profile:
        return self.profiles[0]


@dataclass(frozen=True, slots=True)
class Views:
    """The views of some peers, for one round of the policies."""

    views: tuple[View, ...]


class StatedLag(NamedTuple):
    """What a peer's newest verified profile says of its network's stampers."""

    pair: int
    lag: int  # seconds by which they may lag behind one another


# -- acting --------------------------------------------------------------


class PeerPrefix(NamedTuple):
    """The packets of one peer, told by its key, from a prefix at which there are other peers, too."""

    prefix: Prefix
    peer: str


Sender = Prefix | PeerPrefix


@dataclass(frozen=True, slots=True)
class Firing:
    """A policy wants its action carried out now."""

    at: float
    policy: Policy
    peer: str
    epoch: int  # of the newest profile
    targets: tuple[Sender, ...]  # the action aims at these, addresses as /32 and /128; empty: at the peer as such
    values: dict[str, float | str | bool]  # the variables of the expression
    reason: str
    accepted_at: float = 0.0  # when the cause was accepted: the newest profile, or the glance of an alarm
    alarm: bool = False  # this is the first firing since the peer's threat rose
    repeated: bool = False  # it has fired before since it became true
    asked: float | None = None  # the amount that the policy asks for, of an action that names a resource


@dataclass(frozen=True, slots=True)
class Desired:
    """What policies want of the host: by kind of action the value of each resource, in types of the kind's own."""

    kinds: Mapping[str, Mapping[Hashable, Any]] = field(default_factory=dict)

    def of(self, kind: str) -> Mapping[Any, Any]:
        return self.kinds.get(kind, {})


@dataclass(frozen=True, slots=True)
class DesiredAmounts:
    """What resources should be, by resource and peer: those that have changed."""

    amounts: Mapping[str, Mapping[str, float]]


class PriorWish(NamedTuple):
    """What an allocator has wanted of a resource for a peer before this one, by its host."""

    amount: float
    until: float = math.inf  # Unix time at which the wish ends
    policy: str = ""  # that changed it last
    since: float = -math.inf  # Unix time of that change


@dataclass(frozen=True, slots=True)
class Observed:
    """What a back end has seen of its resource."""

    resource: str
    amounts: Mapping[str, float]  # by peer; who is missing has none
    drifted: tuple[str, ...] = ()  # peers whose amount somebody else has changed
    wanted: Mapping[str, PriorWish] = field(default_factory=dict)  # by peer; empty: this host knows itself


@dataclass(frozen=True, slots=True)
class Applied:
    """A change of a resource was carried out, or failed."""

    resource: str
    peer: str
    amount: float
    seconds: float
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """A policy fired, or a desired value was changed or released. Goes to the history."""

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
class Effect:
    """What became of a metric some intervals after a change for its sake."""

    at: float
    peer: str
    policy: str
    resource: str
    metric: str
    before: float
    after: float
    trend: Literal["fell", "rose", "unchanged"]


@dataclass(frozen=True, slots=True)
class Oneshot:
    """An edge action of a policy, to be carried out once."""

    action: Any  # its section in the configuration
    decision: Decision
    firing: Firing


@dataclass(frozen=True, slots=True)
class Barred:
    """Senders whose packets should all be dropped as early as possible, each until a Unix time.

    A `PeerPrefix` only the packet path can drop; nftables drops prefixes.
    """

    until: Mapping[Sender, float]


@dataclass(frozen=True, slots=True)
class Notice:
    """An event for people who watch with `scentd monitor`."""

    event: str  # epoch, alarm, profile, decision, rejected
    fields: Mapping[str, Any]
