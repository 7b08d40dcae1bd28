"""The configuration file: a typed schema that is its own documentation.

The file writes quantities as text with a unit ("5s", "100mbit"); the fields are plain numbers in the unit of their
type's name. Each kind of source or action has its section in the kind's file (collect/, core/allocate/actions/).
load.py reads the file.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from scentd.config.allocator import AllocatorSettings
from scentd.config.between import check_config
from scentd.config.budget import Budget
from scentd.config.bus import Bus, check_bus
from scentd.config.node import Aggregation, Node, NodeName, Role, check_nodes
from scentd.config.origin import check_origin
from scentd.config.policy import Policy
from scentd.config.prometheus_server import PrometheusServer
from scentd.config.provide import check_provide
from scentd.config.regions import check_regions
from scentd.config.resource import Resource
from scentd.config.schema import Name, Table, check_prefixes, of_kind, suggestion
from scentd.config.units import Seconds
from scentd.wire import keys, layout
from scentd.wire.layout import Treatment

MAX_LABELS = 8
STALE_INTERVALS = 3  # one reading may be lost and one late
RESERVED = ("age", "epoch", "interval", "load", "peer", "overall")  # variables of policies besides metrics
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Fail = Literal["open", "closed"]
PrivateSlots = dict[str, Annotated[int, Meta(ge=16, le=21)]]


class DaemonSettings(Table):
    gone = {"decision_log": "decisions are in [allocator] history now, a SQLite database; leave this out"}

    state_dir: str = "/var/lib/scentd"  # highest epochs seen and issued; survives restarts
    control_socket: str = "/run/scentd/control.sock"
    control_group: str = ""  # the group whose members may read status and metrics; default: root alone
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class Datapath(Table):
    workers: Annotated[int, Meta(ge=1, le=64)] = 1  # processes that handle packets, each with three queues
    queue: Annotated[int, Meta(ge=0, le=65535 - 384)] = 22600  # first NFQUEUE number; 6 x workers are used
    queue_length: Annotated[int, Meta(ge=64, le=1_000_000)] = 4096  # packets that the kernel keeps for each queue
    mark_stamped: Annotated[int, Meta(gt=0, lt=2**32)] = 0x10000000  # packet mark bits of ours
    mark_queued: Annotated[int, Meta(gt=0, lt=2**32)] = 0x20000000  # packets on their way to a queue
    route_table: Annotated[int, Meta(gt=255, lt=2**31)] = 22600  # the first of our tables, with lowered MTUs
    rule_priority: Annotated[int, Meta(gt=0, lt=32764)] = 22600  # of our first `ip rule`
    offload: Literal["auto", "off"] = "auto"  # auto: BPF programs do the work where the kernel supports it
    pin_dir: str = "/sys/fs/bpf/scentd"  # on a bpf file system: programs and maps outlive the daemon there
    mark_verified: Annotated[int, Meta(gt=0, lt=2**32)] = 0x40000000  # packets that a BPF program has judged

    renamings = {"mark_rejected": "mark_queued"}

    def mistakes(self, path: str) -> list[str]:
        return check_marks(self, path)


class Stamp(Table):
    fail: Fail = "open"  # no daemon: packets leave unstamped (open) or not at all (closed)
    overload: Fail = "open"  # more packets than a queue takes: the others leave unstamped, or not at all
    forwarded: bool = False  # stamp packets that this host forwards for [[network]] addresses, too


class Verify(Table):
    fail: Fail = "closed"  # no daemon: packets come in unverified (open) or not at all (closed)
    overload: Fail = "closed"  # more packets than a queue takes: the others come in unverified, or not at all
    max_age: Seconds = 60.0  # an epoch older than this is stale
    max_future: Seconds = 10.0  # an epoch further ahead of our clock than this is refused
    grace: Seconds = 2.0  # after a new epoch the one before it is accepted for so long
    rejected: Treatment = "drop"  # this and `absent` are for senders that are no peer
    absent: Treatment = "pass"
    mark_glance: Annotated[int, Meta(ge=0, lt=2**32)] = 0  # eight bits of the packet mark for load and threat; 0: none

    def mistakes(self, path: str) -> list[str]:
        lowest = self.mark_glance & -self.mark_glance
        if self.mark_glance not in (0, 0xFF * lowest):
            return [f"{path}.mark_glance: {self.mark_glance:#x} is not eight neighbouring bits; write e.g. 0x00ff0000"]
        return []


class GuardException(Table):
    """Packets of strict peers that come in while nobody verifies, so that nobody is locked out for good."""

    prefix: str  # the other end
    protocol: Literal["tcp", "udp"]
    port: Annotated[int, Meta(ge=1, le=65535)]
    direction: Literal["in", "out"]  # in: they reach this port of ours. out: answers from their port to what we sent

    def mistakes(self, path: str) -> list[str]:
        return check_prefixes([self.prefix], f"{path}.prefix")


class GuardSettings(Table):
    """The process that keeps closed what is closed, and packets waiting, while there is no daemon."""

    socket: str = "/run/scentd-guard/guard.sock"
    exception: list[GuardException] = []


class Source(Table, kw_only=True):
    """Base of the sections of sources. The rules between sections ask these questions of any kind.

    Readers do not look at `node` and `role`: collect/readers.py fills both in where a reader has left them "".
    """

    reports_events: ClassVar[bool] = (
        False  # it reports security events: without an event the threat is 0.0, not unknown
    )

    node: NodeName = ""  # of whom it speaks: a node's address or name, e.g. a guest seen from outside; "": this host
    role: Role = ""  # the role of that node or application: db, web, cache ...

    def scale(self) -> str:
        """What of it scores 1.0, for people: "200 ms"; "" where there is nothing to say."""
        return ""

    def events_node(self) -> str:
        """The node of security events that name none; "" leaves them so."""
        return self.node

    def private_metric(self) -> str:
        """A metric that [network.metrics] may have to name; "" if the kind's metrics are all standard."""
        return ""

    def claim(self) -> str:
        """A name that no other source of this host may use, such as a socket's path; "" for none."""
        return ""

    def same(self) -> str:
        """By which a reload knows this source of the network again, so that its events go on; "" for not at all."""
        return self.claim()


class Network(Table):
    """One network of ours: its identity, and the duties of this host for it.

    Besides verifying there are three: `source` collects here; `sign` issues profiles here; `stamp` scents packets here.
    By default a network with sources and a key file has all three, and one without sources none.
    """

    name: Name
    key_file: str = ""  # made by `scentd keygen`, mode 0600; "credential:NAME" for a systemd credential
    next_key_file: str = (
        ""  # while its key changes: packets for this key are accepted, too, and nothing is signed by it
    )
    public_key: str = ""  # by which a host without key_file checks the profiles that it stamps
    next_public_key: str = ""  # while its key changes
    addresses: list[str] = []  # its nodes' prefixes; empty: every address of this host, or what the next two say
    interface: list[str] = []  # its nodes' packets come in by one of these (tap, veth, VRF), whatever their addresses
    mark: str = ""  # or have this packet mark, as "0x100/0xff00": value and mask
    sign: bool | None = None  # sign its profiles here; needs key_file. Default: if it has sources and key_file
    stamp: bool | None = None  # stamp its packets here. Default: as `sign`
    interval: Seconds = 5.0  # from one epoch to the next
    lag: Seconds = 0.0  # by which its stampers may lag behind one another: receivers take older epochs so far
    steps: Literal[2, 5, 10, 25, 50, 125, 250] = 50  # levels are rounded to one of so many steps
    high: Share = 0.8  # a level of this or more is "high" in a characteristic
    low: Share = 0.3  # a level below this is "low"
    min_nodes: Annotated[int, Meta(ge=1)] = 1  # a role of fewer nodes has no characteristics
    labels: list[str] = []  # characteristics of the whole network, e.g. "region=eu-west"
    regions: dict[str, list[str]] = {}  # prefixes by the region that they lie in: the far ends of paths
    weights: dict[str, Annotated[float, Meta(ge=0)]] = {}  # of metrics in the overall score; default 1
    metrics: PrivateSlots = {}  # names for private metric slots
    stale_after: Seconds | None = None  # the age at which a sample counts no longer; default: three intervals
    aggregate: dict[str, Aggregation] = {}  # how a metric's values of many nodes become one; default: by metric
    outlier_factor: Annotated[float, Meta(ge=0)] = 10.0  # so many times the others' median is suspect; 0: nothing is
    node: list[Node] = []  # default: whoever the collectors name
    beacon_source: list[str] = []  # our addresses that beacons come from; default: as the kernel routes
    source: list[Annotated[Source, of_kind("source")]] = []

    renamings = {"collect": "source"}

    @property
    def signs(self) -> bool:
        return bool(self.source and self.key_file) if self.sign is None else self.sign

    @property
    def staleness(self) -> float:
        """Seconds after which a sample counts no longer."""
        return self.stale_after or STALE_INTERVALS * self.interval

    @property
    def stamps(self) -> bool:
        return self.signs if self.stamp is None else self.stamp

    @property
    def has_origin(self) -> bool:
        """Whether its packets are known by where they come from, and not by their source addresses."""
        return bool(self.interface or self.mark)

    @property
    def is_whole_host(self) -> bool:
        """Whether every address of this host is the network's."""
        return not self.addresses and not self.has_origin

    @property
    def receives(self) -> bool:
        """Whether packets to some address are for this network, so that they can be verified."""
        return bool(self.addresses) or not self.has_origin

    def mistakes(self, path: str) -> list[str]:
        return check_network(self, path)


class Peer(Table):
    name: Name
    public_key: str
    addresses: list[str]
    next_public_key: str = ""  # while its key changes: its packets come by either key, and ours are made for this one
    endpoint: list[str] = []  # addresses for beacons; default: the host addresses among `addresses`
    verifiers: Annotated[int, Meta(ge=1, le=16)] = 1  # that share its addresses, each seeing some packets only
    verifier_endpoint: list[str] = []  # of such verifiers an address of each one's own: every one gets beacons
    stamp: bool = True  # scent packets to the peer
    verify: bool = True  # verify packets from the peer
    bind: Literal["flow", "sender"] = "flow"  # "sender" if NAT lies between the two ends
    rejected: Treatment = "drop"
    absent: Treatment = "pass"
    absent_ipv6_fragments: Treatment | None = None  # for IPv6 datagrams that came in fragments; default: as absent
    stamp_ipv6_fragments: bool = False  # only if the peer verifies before defragmentation
    metrics: PrivateSlots = {}  # its names for private metric slots

    @property
    def public_keys(self) -> list[str]:
        """The key in use, then the next one."""
        return [key for _, key in self.named_keys()]

    def named_keys(self) -> list[tuple[str, str]]:
        """The same with their settings' names."""
        own = [("public_key", self.public_key), ("next_public_key", self.next_public_key)]
        return own if self.next_public_key else own[:1]

    @property
    def has_several_verifiers(self) -> bool:
        """Whether a packet to the peer may be seen by one of its verifiers and not by another."""
        return self.verifiers > 1 or bool(self.verifier_endpoint)

    def mistakes(self, path: str) -> list[str]:
        return check_peer(self, path)


class Config(Table):
    daemon: DaemonSettings = DaemonSettings()
    datapath: Datapath = Datapath()
    stamp: Stamp = Stamp()
    verify: Verify = Verify()
    guard: GuardSettings = GuardSettings()
    network: list[Network] = []
    peer: list[Peer] = []
    prometheus_server: list[PrometheusServer] = []
    allocator: AllocatorSettings = AllocatorSettings()
    resource: list[Annotated[Resource, of_kind("resource")]] = []
    budget: list[Budget] = []
    policy: list[Policy] = []
    bus: Bus = Bus()

    def mistakes(self, path: str) -> list[str]:
        return check_config(self) + check_bus(self) + check_provide(self)


def stamped_peers(config: Config) -> list[Peer]:
    """The peers to which this host sends scents; none if it stamps for no network."""
    return [p for p in config.peer if p.stamp] if any(n.stamps for n in config.network) else []


# -- the rules of one section --------------------------------------------


def check_marks(datapath: Datapath, path: str) -> list[str]:
    """Each mark needs bits of its own."""
    names = ("mark_stamped", "mark_queued", "mark_verified")
    return [
        f"{path}.{name}: shares bits with {path}.{other}; give each a bit of its own"
        for i, name in enumerate(names)
        for other in names[:i]
        if getattr(datapath, name) & getattr(datapath, other)
    ]


def check_network(network: Network, path: str) -> list[str]:
    problems = check_prefixes(network.addresses, f"{path}.addresses") + check_origin(network, path)
    if network.next_key_file and not network.key_file:
        problems.append(f"{path}.next_key_file: not without key_file, which is the key in use")
    if not layout.INTERVAL_MIN <= network.interval <= layout.INTERVAL_MAX or network.interval % 1:
        problems.append(
            f"{path}.interval: write whole seconds, {layout.INTERVAL_MIN} to {layout.INTERVAL_MAX}; 5s to 10s is usual"
        )
    if not 0 <= network.lag <= layout.LAG_MAX or network.lag % 1:
        problems.append(f"{path}.lag: write whole seconds, 0 to {layout.LAG_MAX}; 0s for a network of one stamper")
    if network.low > network.high:
        problems.append(f"{path}.low: is above {path}.high; lower the one or raise the other")
    problems += check_duties(network, path) + check_network_keys(network, path)
    problems += check_regions(network.regions, f"{path}.regions")
    problems += check_metric_slots(network.metrics, f"{path}.metrics")
    problems += check_nodes(network, path)
    known = {*layout.METRICS.values(), *network.metrics}
    for metric in network.weights:
        if metric not in known:
            problems.append(f"{path}.weights.{metric}: no such metric{suggestion(metric, sorted(known))}")
    for i, source in enumerate(network.source):
        metric = source.private_metric()
        if metric and metric not in known:
            problems.append(f"{path}.source[{i}].metric: no such metric: {metric!r}; name it in {path}.metrics")
    if len(network.labels) > MAX_LABELS:
        problems.append(f"{path}.labels: more than {MAX_LABELS}; take some away: other characteristics need room, too")
    for i, label in enumerate(network.labels):
        if "=" not in label or len(label) > 200:
            problems.append(f'{path}.labels[{i}]: write name=value, e.g. "region=eu-west", at most 200 characters')
    return problems


def check_duties(network: Network, path: str) -> list[str]:
    """Without the network's key a host may only collect, and stamp profiles that are signed elsewhere."""
    if network.key_file:
        return []
    if network.signs:
        return [f"{path}.key_file: missing; signing needs it: make one with `scentd keygen`, or take {path}.sign away"]
    if not network.source and not network.stamps:
        return [
            f"{path}.key_file: missing; make one with `scentd keygen`. A host without the network's key can have its "
            f"sources, or {path}.stamp = true"
        ]
    return []


def check_network_keys(network: Network, path: str) -> list[str]:
    problems = []
    for name in ("public_key", "next_public_key"):
        try:
            if text := getattr(network, name):
                keys.parse_public(text)
        except ValueError as error:
            problems.append(f"{path}.{name}: {error}")
    if network.next_public_key and not network.public_key:
        problems.append(f"{path}.next_public_key: not without public_key, which is the key in use")
    return problems


def check_metric_slots(metrics: dict[str, int], path: str) -> list[str]:
    problems = [
        f"{path}.{m}: is the name of a standard metric; choose another" for m in metrics if m in layout.METRICS.values()
    ]
    if len(set(metrics.values())) < len(metrics):
        problems.append(f"{path}: two names share a slot; use each of 16..21 once")
    problems += [f"{path}.{m}: policies have a variable of that name; choose another" for m in metrics if m in RESERVED]
    return problems + [
        f"{path}.{m}: write letters, digits and _ alone, because policies use the name"
        for m in metrics
        if not m.isidentifier()
    ]


def check_hosts(addresses: list[str], path: str) -> list[str]:
    """Each is one address."""
    prefixes = [(i, text) for i, text in enumerate(addresses) if "/" in text]
    return [f"{path}[{i}]: {text!r} is a prefix; write one address" for i, text in prefixes] + check_prefixes(
        [text for text in addresses if "/" not in text], path
    )


def check_peer(peer: Peer, path: str) -> list[str]:
    problems = check_prefixes(peer.addresses, f"{path}.addresses")
    problems += check_metric_slots(peer.metrics, f"{path}.metrics")
    if not peer.addresses:
        problems.append(f"{path}.addresses: empty; a scent is accepted only from a peer's addresses")
    problems += check_hosts(peer.endpoint, f"{path}.endpoint")
    problems += check_hosts(peer.verifier_endpoint, f"{path}.verifier_endpoint")
    if peer.verifier_endpoint and (peer.endpoint or peer.verifiers > 1):
        problems.append(
            f"{path}.verifier_endpoint: names each verifier's address; take {path}.endpoint and {path}.verifiers away"
        )
    key_ids = []
    for name, text in peer.named_keys():
        try:
            key_ids.append(keys.parse_public(text).key_id)
        except ValueError as error:
            problems.append(f"{path}.{name}: {error}")
    if len(set(key_ids)) < len(key_ids):
        problems.append(f"{path}.next_public_key: has the key id of public_key; make another key, or leave it out")
    return problems
