"""The configuration file: a typed schema that is its own documentation.

`load(path)` returns a Config or raises ConfigError with every mistake of the file
at once, each under its path. Quantities carry their unit as text ("5s", "100mbit",
"64KiB"); the fields hold plain numbers of the unit in their type's name.
"""

from __future__ import annotations

import math
import tomllib
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from msgspec import Meta

from scentd import schema, series, when
from scentd.errors import ConfigError
from scentd.model import Prefix
from scentd.policy import Bandwidth, Command, Do, Policy, Quarantine, Webhook
from scentd.prefixes import overlaps
from scentd.schema import Name, Table, duplicates
from scentd.units import Bits, Seconds
from scentd.wire import keys, layout

__all__ = ["Bandwidth", "Command", "Do", "Policy", "Quarantine", "Webhook"]  # sections that policy.py defines

MAX_LABELS = 8
RESERVED = ("age", "epoch", "interval", "load", "network", "overall")  # variables of policies besides metrics
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Treatment = Literal["drop", "reject", "pass"]
Fail = Literal["open", "closed"]


class Daemon(Table):
    state_dir: str = "/var/lib/scentd"  # highest epochs seen and issued; survives restarts
    control_socket: str = "/run/scentd/control.sock"
    control_group: str = ""  # a group whose members may read status and metrics; default: root alone
    decision_log: str = "/var/lib/scentd/decisions.jsonl"
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class Datapath(Table):
    workers: Annotated[int, Meta(ge=1, le=64)] = 1  # processes that handle packets, each with three queues
    queue: Annotated[int, Meta(ge=0, le=65535 - 192)] = 22600  # first NFQUEUE number; 3 x workers are used
    queue_length: Annotated[int, Meta(ge=64, le=1_000_000)] = 4096  # packets the kernel keeps per queue
    mark_stamped: Annotated[int, Meta(gt=0, lt=2**32)] = 0x10000000  # packet mark bits of ours
    mark_rejected: Annotated[int, Meta(gt=0, lt=2**32)] = 0x20000000
    route_table: Annotated[int, Meta(gt=255, lt=2**31)] = 22600  # routes to peers with room for the scent
    rule_priority: Annotated[int, Meta(gt=0, lt=32764)] = 22600  # of our three `ip rule`s
    offload: Literal["auto", "off"] = "auto"  # BPF programs do what they can where the kernel has them
    pin_dir: str = "/sys/fs/bpf/scentd"  # on a bpf file system: programs and maps outlive the daemon there
    mark_verified: Annotated[int, Meta(gt=0, lt=2**32)] = 0x40000000  # what the program has decided; offload only

    def mistakes(self, path: str) -> list[str]:
        return check_marks(self, path)


class Stamp(Table):
    fail: Fail = "open"  # no daemon: packets leave unstamped (open) or not at all (closed)
    forwarded: bool = False  # stamp what this host forwards for [[network]] addresses, too


class Verify(Table):
    fail: Fail = "closed"  # no daemon: packets come in unverified (open) or not at all (closed)
    max_age: Seconds = 60.0  # an epoch older than this is stale
    max_future: Seconds = 10.0  # an epoch further ahead of our clock than this is refused
    grace: Seconds = 2.0  # how long the epoch before the highest is still accepted
    rejected: Treatment = "drop"  # for senders that are nobody's peer
    absent: Treatment = "pass"
    mark_glance: Annotated[int, Meta(ge=0, lt=2**32)] = 0  # eight bits of the packet mark for load and threat; 0: none

    def mistakes(self, path: str) -> list[str]:
        lowest = self.mark_glance & -self.mark_glance
        if self.mark_glance not in (0, 0xFF * lowest):
            return [f"{path}.mark_glance: {self.mark_glance:#x} is not eight neighbouring bits, like 0x00ff0000"]
        return []


class CpuSource(Table, tag_field="kind", tag="cpu"):
    """Busy share of all processors (/proc/stat)."""

    role: str = ""


class MemorySource(Table, tag_field="kind", tag="memory"):
    """1 - MemAvailable / MemTotal (/proc/meminfo)."""

    role: str = ""


class BandwidthSource(Table, tag_field="kind", tag="bandwidth"):
    """Bits in and out of an interface against its capacity (link counters over netlink)."""

    interface: str
    capacity: Bits  # per second, each way
    role: str = ""

    def mistakes(self, path: str) -> list[str]:
        return check_positive(self, path, "capacity")


class TcpSource(Table, tag_field="kind", tag="tcp"):
    """Latency and jitter: rtt and rttvar of this host's TCP connections (inet_diag), weighted by traffic."""

    latency_full: Seconds = 0.2  # this round trip scores 1.0
    jitter_full: Seconds = 0.05
    role: str = ""

    def mistakes(self, path: str) -> list[str]:
        return check_positive(self, path, "latency_full", "jitter_full")


class EveSource(Table, tag_field="kind", tag="eve"):
    """Suricata EVE lines of type alert on a unix socket that scentd listens on."""

    socket: str
    hold: Seconds = 60.0  # how long one event keeps the threat level up
    alarm: Share = 0.5  # an event at least this severe makes a new epoch at once
    affected: Literal["either", "source"] = "either"  # the end of ours that an alert names; or only one that sent

    def mistakes(self, path: str) -> list[str]:
        return check_positive(self, path, "hold")


class PrometheusSource(Table, tag_field="kind", tag="prometheus"):
    """One metric of a Prometheus text endpoint."""

    url: str
    series: str  # name, or name{label="value",...}; values of all matching series are summed
    full: Annotated[float, Meta(gt=0)]  # this value scores 1.0
    metric: str = "request_load"
    rate: bool = False  # a counter: score its increase per second
    timeout: Seconds = 2.0
    role: str = ""

    def mistakes(self, path: str) -> list[str]:
        return check_prometheus(self, path)


Source = CpuSource | MemorySource | BandwidthSource | TcpSource | EveSource | PrometheusSource


class Network(Table):
    """One identity of this host. Without `collect` it signs nothing and only verifies."""

    name: Name
    key_file: str  # made by `scentd keygen`, mode 0600; "credential:NAME" for a systemd credential
    addresses: list[str] = []  # its nodes' prefixes; empty: every address of this host
    interval: Seconds = 5.0  # a new epoch every so often
    steps: Literal[2, 5, 10, 25, 50, 125, 250] = 50  # levels are rounded to one of so many steps
    high: Share = 0.8  # a level from here on is "high" in a characteristic
    low: Share = 0.3  # below it is "low"
    min_nodes: Annotated[int, Meta(ge=1)] = 1  # a role that fewer nodes share is not told in characteristics
    labels: list[str] = []  # characteristics of the whole network, e.g. "region=eu-west"
    weights: dict[str, Annotated[float, Meta(ge=0)]] = {}  # of metrics in the overall score; default 1
    metrics: dict[str, Annotated[int, Meta(ge=16, le=21)]] = {}  # names for private metric slots
    beacon_source: list[str] = []  # our addresses that beacons come from; default: as the kernel routes
    collect: list[Source] = []

    def mistakes(self, path: str) -> list[str]:
        return check_network(self, path)


class Peer(Table):
    name: Name
    public_key: str
    addresses: list[str]
    endpoint: list[str] = []  # addresses for beacons; default: the host addresses among `addresses`
    stamp: bool = True  # scent what we send there
    verify: bool = True  # verify what comes from there
    bind: Literal["flow", "sender"] = "flow"  # "sender" where NAT lies between
    rejected: Treatment = "drop"
    absent: Treatment = "pass"
    absent_ipv6_fragments: Treatment | None = None  # IPv6 datagrams that came in fragments; default: as absent
    stamp_ipv6_fragments: bool = False  # only if the peer verifies before defragmentation
    metrics: dict[str, Annotated[int, Meta(ge=16, le=21)]] = {}  # its names for private metric slots

    def mistakes(self, path: str) -> list[str]:
        return check_peer(self, path)


class Config(Table):
    daemon: Daemon = Daemon()
    datapath: Datapath = Datapath()
    stamp: Stamp = Stamp()
    verify: Verify = Verify()
    network: list[Network] = []
    peer: list[Peer] = []
    policy: list[Policy] = []

    def mistakes(self, path: str) -> list[str]:
        return check_config(self)


def load(path: str | Path) -> Config:
    """Read and check a configuration file. Raises ConfigError with all its mistakes."""
    try:
        text = Path(path).read_text()
        data = tomllib.loads(text)
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}; name the file with --config"]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: not valid TOML: {error}"]) from None
    return from_dict(data)


def from_dict(data: dict[str, Any]) -> Config:
    """A checked Config from parsed TOML. Raises ConfigError."""
    problems: list[str] = []
    config = schema.convert(data, Config, "", problems)
    if problems:
        raise ConfigError(problems)
    return config


def same_peer(peers: list[Peer]) -> list[str]:
    """Two peers cannot share a public key."""
    problems = []
    first: dict[str, int] = {}
    for i, peer in enumerate(peers):
        if peer.public_key in first:
            other = f"peer[{first[peer.public_key]}]"
            problems.append(f"peer[{i}].public_key: is that of {other} as well; list all addresses there")
        first.setdefault(peer.public_key, i)
    return problems


def shared_addresses(peers: list[Peer]) -> list[str]:
    """Where two peers overlap, one could speak, and be quarantined, for the other. Behind one NAT they may."""
    entries = [(i, a) for i, peer in enumerate(peers) for a in peer.addresses]
    return [
        f'peer[{i}].addresses: {inner} lies in {outer} of peer[{other}]; only peers with bind = "sender" may share'
        for i, inner, other, outer in overlaps(entries)
        if {peers[i].bind, peers[other].bind} != {"sender"}
    ]


def check_config(config: Config) -> list[str]:
    """The rules between sections."""
    problems = [
        *duplicates("network", [n.name for n in config.network]),
        *duplicates("peer", [p.name for p in config.peer]),
        *duplicates("policy", [p.name for p in config.policy]),
    ]
    sockets = [s.socket for n in config.network for s in n.collect if isinstance(s, EveSource)]
    problems += [
        f"network.collect: two sources listen on {s!r}; give each a socket of its own"
        for s in sorted({s for s in sockets if sockets.count(s) > 1})
    ]
    peers = sorted(p.name for p in config.peer)
    for i, policy in enumerate(config.policy):
        if policy.network != "*" and policy.network not in peers:
            near = schema.suggestion(policy.network, peers)
            problems.append(f"policy[{i}].network: no peer is named {policy.network!r}{near}")
    whole = [i for i, n in enumerate(config.network) if not n.addresses]
    if whole and len(config.network) > 1:
        problems += [f"network[{i}].addresses: missing; with several networks each names its own" for i in whole]
    if config.stamp.forwarded:
        problems += [
            f"peer[{i}].stamp_ipv6_fragments: not with stamp.forwarded, as only a source may fragment (RFC 8200)"
            for i, p in enumerate(config.peer)
            if p.stamp_ipv6_fragments
        ]
    problems += same_peer(config.peer)
    problems += shared_addresses(config.peer)
    own = config.datapath.mark_stamped | config.datapath.mark_rejected | config.datapath.mark_verified
    if config.verify.mark_glance & own:
        problems.append("verify.mark_glance: shares bits with a mark of [datapath]; choose other bits")
    problems += when.check(config.policy, {name for peer in config.peer for name in peer.metrics})
    if config.peer and not config.network:
        problems.append("network: missing; a host with peers needs an identity of its own: [[network]] with key_file")
    return problems


def check_marks(datapath: Datapath, path: str) -> list[str]:
    """Each mark needs bits of its own."""
    names = ("mark_stamped", "mark_rejected", "mark_verified")
    return [
        f"{path}.{name}: shares bits with {path}.{other}; give each a bit of its own"
        for i, name in enumerate(names)
        for other in names[:i]
        if getattr(datapath, name) & getattr(datapath, other)
    ]


def check_prefixes(addresses: list[str], path: str) -> list[str]:
    problems = []
    for i, text in enumerate(addresses):
        try:
            ip_network(text)
        except ValueError as error:
            problems.append(f"{path}[{i}]: {error}; write 10.1.0.0/24, 10.1.0.7 or fd00:1::/64")
    return problems


def check_network(network: Network, path: str) -> list[str]:
    problems = check_prefixes(network.addresses, f"{path}.addresses")
    if not layout.INTERVAL_MIN <= network.interval <= layout.INTERVAL_MAX or network.interval % 1:
        problems.append(
            f"{path}.interval: whole seconds from {layout.INTERVAL_MIN} to {layout.INTERVAL_MAX}; 5s to 10s is usual"
        )
    if network.low > network.high:
        problems.append(f"{path}.low: is above {path}.high")
    problems += check_metric_slots(network.metrics, f"{path}.metrics")
    known = {*layout.METRICS.values(), *network.metrics}
    for metric in network.weights:
        if metric not in known:
            problems.append(f"{path}.weights.{metric}: no such metric{schema.suggestion(metric, sorted(known))}")
    for i, source in enumerate(network.collect):
        if isinstance(source, PrometheusSource) and source.metric not in known:
            problems.append(f"{path}.collect[{i}].metric: no such metric: {source.metric!r}; name it in {path}.metrics")
    if len(network.labels) > MAX_LABELS:
        problems.append(f"{path}.labels: more than {MAX_LABELS}; the Bloom filter has to hold the rest as well")
    for i, label in enumerate(network.labels):
        if "=" not in label or len(label) > 200:
            problems.append(f'{path}.labels[{i}]: write name=value, e.g. "region=eu-west", at most 200 characters')
    return problems


def check_positive(source: Table, path: str, *fields: str) -> list[str]:
    return [f"{path}.{f}: must be more than 0" for f in fields if not 0 < getattr(source, f) < math.inf]


def check_prometheus(source: PrometheusSource, path: str) -> list[str]:
    problems = check_positive(source, path, "timeout", "full")
    try:
        series.parse(source.series)
    except ValueError as error:
        problems.append(f"{path}.series: {error}")
    try:
        url = urlsplit(source.url)
        right = url.scheme in ("http", "https") and url.hostname and not url.username and url.port != 0
    except ValueError:
        right = False
    if not right:
        problems.append(f"{path}.url: {source.url!r}; write http://host:port/metrics or https://..., without a user")
    return problems


def check_metric_slots(metrics: dict[str, int], path: str) -> list[str]:
    problems = [f"{path}.{m}: is a standard metric already" for m in metrics if m in layout.METRICS.values()]
    if len(set(metrics.values())) < len(metrics):
        problems.append(f"{path}: two names share a slot; use each of 16..21 once")
    problems += [f"{path}.{m}: policies have a variable of that name; choose another" for m in metrics if m in RESERVED]
    return problems + [
        f"{path}.{m}: a name is letters, digits and _, because policies use it" for m in metrics if not m.isidentifier()
    ]


def check_peer(peer: Peer, path: str) -> list[str]:
    problems = check_prefixes(peer.addresses, f"{path}.addresses")
    problems += check_metric_slots(peer.metrics, f"{path}.metrics")
    if not peer.addresses:
        problems.append(f"{path}.addresses: empty; a scent is accepted only from a peer's addresses")
    for i, text in enumerate(peer.endpoint):
        problems += [p for p in check_prefixes([text], f"{path}.endpoint") if "/" not in text]
        if "/" in text:
            problems.append(f"{path}.endpoint[{i}]: one address, not a prefix")
    try:
        keys.parse_public(peer.public_key)
    except ValueError as error:
        problems.append(f"{path}.public_key: {error}")
    return problems


def stamped_peers(config: Config) -> list[Peer]:
    """Whom this host sends scents: nobody, if it has no network that signs anything."""
    return [p for p in config.peer if p.stamp] if any(n.collect for n in config.network) else []


def prefixes(addresses: list[str]) -> tuple[Prefix, ...]:
    return tuple(ip_network(a) for a in addresses)
