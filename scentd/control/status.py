"""The status document: the whole state of a daemon for people and programs. It holds no secret.

This file alone defines its content; `scentd status --json`, the exporter and every view read it, and
status.schema.json (scripts/gen-schema) is its JSON Schema. `schema` is raised when a field changes its name or meaning.

Lists that grow with networks, peers, nodes or decisions are limited: the first LIMIT by rank (largest threat,
then load), and in `omitted` a sum for the rest. A request with limit 0 gets all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from msgspec import Struct

from scentd.model import SCHEMA, Decision, Effect, NodeState, ProfileAccount, SourceState

LIMIT = 100  # entries of a list, unless the request says otherwise
AFFECTED_MAX = 100  # addresses of a peer's affected nodes that are named; `affected_count` counts all

T = TypeVar("T")


class OffloadStatus(Struct, frozen=True, kw_only=True):
    wanted: bool = True  # by datapath.offload
    mechanism: str | None = None  # tcx or clsact
    egress: list[str] = []  # interfaces to peers by which the program stamps
    ingress: list[str] = []  # interfaces on which it verifies
    ports: list[str] = []  # ports of bridges at which it serves what the bridge forwards
    why_not: str = ""  # the reason, where there is no offload
    bypasses: list[str] = []  # what passes by: without the offload the queue, with it the stamper at some ports


class GuardStatus(Struct, frozen=True, kw_only=True):
    """The guard's state. Counters are since its start."""

    connected: bool = False  # without it whatever is closed is open while our rules are not there
    closed: bool = False  # it drops what strict peers send and nobody has verified
    waiting: int = 0  # packets in queues that nobody reads
    released: int = 0  # packets that waited and went on
    given_up: int = 0  # packets that waited too long, and met `fail`
    dropped: int = 0  # unverified packets of strict peers
    excepted: int = 0  # those that came in by an exception of [guard]


STATES: tuple[SourceState, ...] = ("fresh", "stale", "failing", "suspect")  # the worst last


class SourceStatus(Struct, frozen=True, kw_only=True):
    """One [[network.source]] as this host reads it."""

    name: str  # as in the names of its counters
    kind: str
    node: str = ""  # of whom it speaks; "" is this host
    role: str = ""
    state: SourceState
    reason: str = ""  # why it is not fresh
    age: float | None = None  # seconds since its last reading; None: there has been none, or it is not asked but told
    scale: str = ""  # what of it is 1.0


class NetworkStatus(Struct, frozen=True, kw_only=True):
    """One [[network]]: what this host does for it, and the last statement that it issued here."""

    name: str
    key_id: str  # "" on a host without its key
    next_key_id: str = ""  # of network.next_key_file
    signs: bool
    stamps: bool
    collectors: dict[str, int] = {}  # counters of its sources here
    sources: list[SourceStatus] = []  # of this host
    source_states: dict[str, int] = {}  # how many there are, by state
    nodes: list[NodeState] = []  # of which the profiler here knows
    node_states: dict[str, int] = {}  # how many there are, by state
    intake: dict[str, int] = {}  # what the profiler here refused, clipped or noticed of samples and nodes, by name
    epoch: int = 0
    issued: int = 0
    refused: int = 0  # profiles of ours that did not verify
    voided: int = 0  # epochs of a wrong clock that were given up
    interval: float = 0.0  # seconds
    overall: float | None = None
    levels: dict[str, float] = {}
    items: list[str] = []
    affected: list[str] = []


class PrometheusQueryStatus(Struct, frozen=True, kw_only=True):
    metric: str
    why_not: str  # it fails, and why
    answered_at: float | None  # Unix time of the last answer
    seconds: float  # that this took
    samples: int  # in the last answer; 0 while it fails
    networks: int  # that have one there


class PrometheusServerStatus(Struct, frozen=True, kw_only=True):
    """One [[prometheus_server]]."""

    name: str
    queries: list[PrometheusQueryStatus]
    counters: dict[str, int]  # of its answers, since the last reload


class LeaseStatus(Struct, frozen=True, kw_only=True):
    """Which of several profilers of one name issues, or of several allocators decides."""

    active: bool  # this one
    instance: str  # this one's own name, anew with each start
    holder: str  # whose the lease was when it was last read; "" if nobody's
    term: int  # of this one's lease


class ProvidingStatus(Struct, frozen=True, kw_only=True):
    """What this host gives because an allocator of another host decides so."""

    resources: list[str]  # that it offers
    terms: dict[str, int]  # of each allocator the highest; older ones are refused
    amounts: int  # that it was told
    restricted: int  # of these, with an end of their own that is still to come
    file_failures: int  # of desired.db


class BusStatus(Struct, frozen=True, kw_only=True):
    """The bus between hosts, [bus]."""

    name: str  # of this host
    connected: bool
    server: str  # host and port
    why_not: str  # why it is not connected
    lease: LeaseStatus | None  # None: nothing is signed here
    allocation_lease: LeaseStatus | None  # None: nothing is decided here of other hosts' resources
    providing: ProvidingStatus | None  # None: this host offers nothing to allocators of others
    counters: dict[str, int]  # messages sent and taken, and those refused, by reason
    heard: dict[str, float | None]  # of each host that has something to say: seconds since then; None: nothing yet


class Glance(Struct, frozen=True):
    load: float
    threat: float


class ProfileStatus(Struct, frozen=True, kw_only=True):
    """The newest verified profile of a peer."""

    epoch: int
    interval: int
    age: float  # seconds since it came in
    overall: float | None
    levels: dict[str, float]
    glance: Glance
    nodes: int
    affected: list[str]
    affected_count: int


class PeerStatus(Struct, frozen=True, kw_only=True):
    """One [[peer]] as one network of ours knows it."""

    name: str
    network: str
    key_id: str
    next_key_id: str = ""  # of peer.next_public_key
    highest_epoch: int
    lag: int = 0  # seconds below it that are accepted: by how much the peer's stampers may lag
    verified: bool = True  # this host verifies what it sends; else there is nothing to see of it
    revoked: list[str] = []  # key ids of its keys that are revoked: nothing is accepted by them
    signed_by: str = ""  # the key id of its key in the newest epoch
    made_for: str = ""  # the key id of our key for which that epoch was made
    profile: ProfileStatus | None


class PeerTraffic(Struct, frozen=True, kw_only=True):
    """Packets from and to one [[peer]], over all networks of ours, since the daemon's start. Names without packets are
    left out.
    """

    name: str
    accepted: int = 0
    rejected: dict[str, int] = {}  # by reason
    absent: dict[str, int] = {}  # by treatment
    let_in: int = 0  # rejected or absent, and let in all the same: what strict treatments would refuse
    unstamped: dict[str, int] = {}  # by reason
    carriers: list[str] = []  # of its IPv4 and IPv6 packets
    accepted_at: float | None = None  # Unix time of the last accepted packet, to the second
    clock_offset: float | None = None  # seconds from its newest epoch to our clock when that came; < 0: its is ahead
    clock_refused: bool = False  # that epoch was refused for it, so nobody has verified it


class BeaconStatus(Struct, frozen=True, kw_only=True):
    sent: int
    failed: int
    received: int


class ResourceStatus(Struct, frozen=True, kw_only=True):
    """One resource of the desired allocation."""

    kind: str  # of the action that set it, or of the resource
    resource: str
    peer: str
    text: str  # what it should be
    amount: float | None = None
    observed: float | None = None  # what there is; None: not known
    unit: str = ""
    until: float | None = None  # Unix time of its release, if that is known
    why_not: str = ""  # the host does not have it, and why


class PolicyStatus(Struct, frozen=True, kw_only=True):
    """How one policy has stood, over all its peers, since the daemon's start or its last change."""

    policy: str
    outcomes: dict[str, int]  # how often it was looked at with each outcome
    true_now: int  # peers for which it holds, or is in its pause after it fired
    fired_at: float | None  # Unix time


class DelayStatus(Struct, frozen=True, kw_only=True):
    """Seconds from one step to the next. `alarm` begins with a glance, `profile` with a whole profile."""

    name: str  # alarm_decided, alarm_applied, profile_decided, profile_applied: all since it was accepted
    count: int
    mean: float
    largest: float
    last: float


class ReleaseStatus(Struct, frozen=True, kw_only=True):
    """An operator has released a quarantine by hand, and the policy does not renew it."""

    policy: str
    peer: str
    senders: str  # a prefix, or "all"
    until: float  # Unix time


class AllocationStatus(Struct, frozen=True, kw_only=True):
    resources: list[ResourceStatus]
    decisions: dict[str, int]  # by action
    policies: list[PolicyStatus]
    delays: list[DelayStatus]
    releases: list[ReleaseStatus] = []
    held: list[str] = []  # resources and peers of which nothing is changed, or "*"
    dry_run: bool = False  # all policies only say what they would do


class Omitted(Struct, frozen=True, kw_only=True):
    """What the lists leave out, as sums."""

    networks: int = 0
    issued: int = 0  # by those networks
    peers: int = 0
    peers_without_profile: int = 0  # among them
    traffic: PeerTraffic | None = None  # of peers, summed
    resources: dict[str, int] = {}  # by kind
    policies: int = 0


class Status(Struct, frozen=True, kw_only=True):
    schema: int = SCHEMA
    version: str
    started: float  # Unix time
    config: str
    datapath: str  # nfqueue, or nfqueue+ebpf
    offload: OffloadStatus
    guard: GuardStatus
    rules_why_not: str = ""  # rules, routes or programs are not as they should be, and why; the daemon tries again
    rules_restored: int = 0  # how often somebody had removed or changed something of ours there, and it was put back
    workers: list[int]  # process ids
    worker_restarts: int
    reloads: dict[str, int]  # applied, refused, reverted
    trial_until: float | None = None  # Unix time at which an unconfirmed configuration goes back
    reverted_at: float | None = None  # Unix time at which one went back, until another is applied: not the file's runs
    networks: list[NetworkStatus]
    prometheus_servers: list[PrometheusServerStatus] = []
    bus: BusStatus | None = None  # None: this host is on no bus
    peers: list[PeerStatus]
    traffic: list[PeerTraffic]  # by peer
    strangers: PeerTraffic  # what was rejected, absent or unstamped and is no peer's
    uncovered: list[str]  # addresses of this host that no network has: what they send leaves without a scent
    omitted: Omitted
    stamped: int  # packets
    accepted: int
    absent: int
    rejected: dict[str, int]  # by reason
    treated: dict[str, int]  # by "verdict:treatment"
    unstamped: dict[str, int]  # by reason
    profiles: int
    profile_errors: dict[str, int]  # by reason
    beacons: BeaconStatus
    other: dict[str, int]
    allocation: AllocationStatus
    actuators: dict[str, int]


class PolicyAssessment(Struct, frozen=True, kw_only=True):
    policy: str
    outcome: str
    detail: str
    reason: str


class AppliedAt(Struct, frozen=True, kw_only=True):
    """A change of a resource was carried out, or failed."""

    at: float
    resource: str
    peer: str
    amount: float
    seconds: float
    failure: str


class Explanation(Struct, frozen=True, kw_only=True):
    """Why a peer is treated as it is: the answer to `scentd explain`."""

    schema: int = SCHEMA
    peer: str
    policies: list[PolicyAssessment]
    decisions: list[Decision]  # newest first, and so are the others
    applied: list[AppliedAt] = []
    effects: list[Effect] = []


class ProfileExplanation(Struct, frozen=True, kw_only=True):
    """How the last profile of a network came about: the answer to `scentd explain --profile`."""

    schema: int = SCHEMA
    network: str
    epoch: int
    interval: float  # seconds
    profile: ProfileAccount
    nodes: list[NodeState]
    intake: dict[str, int]


def limit_list(entries: Sequence[T], limit: int, rank: Callable[[T], object]) -> tuple[list[T], list[T]]:
    """Return (the first `limit` entries by rank, largest first; the rest). Limit 0: all entries, in their own order."""
    if not limit or len(entries) <= limit:
        return list(entries), []
    ordered = sorted(entries, key=rank, reverse=True)  # type: ignore[arg-type]
    return ordered[:limit], ordered[limit:]


def count_names(names: Iterable[str]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for name in names:
        totals[name] = totals.get(name, 0) + 1
    return totals
