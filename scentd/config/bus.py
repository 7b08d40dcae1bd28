"""The [bus] section: the hosts of a fleet, and the NATS servers between them. One host alone needs none of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Meta

from scentd.config.schema import Name, Table, check_positive, duplicates, suggestion
from scentd.config.units import Seconds
from scentd.wire import keys

if TYPE_CHECKING:
    from scentd.config.sections import Config

Duty = Literal["collect", "sign", "stamp", "verify", "allocate", "provide"]
SCHEMES = ("nats", "tls")


class BusHost(Table):
    """Another host of the fleet, or several with one name and key: the active profiler and its standby."""

    name: Name
    public_key: str
    duties: list[Duty]  # what it does for us, or we for it
    networks: list[str] = []  # for which it may; default: every network of this host

    def serves(self, network: str) -> bool:
        return not self.networks or network in self.networks

    def mistakes(self, path: str) -> list[str]:
        problems = (
            []
            if self.duties
            else [f"{path}.duties: missing; one or more of collect, sign, stamp, verify, allocate, provide"]
        )
        try:
            keys.parse_public(self.public_key)
        except ValueError as error:
            problems.append(f"{path}.public_key: {error}")
        return problems


class Bus(Table):
    url: list[str] = []  # of NATS servers of one cluster, any of them will do; default: this host needs no bus
    name: str = ""  # of this host on the bus; those that stand in for one another have one name and key
    key_file: str = ""  # this host's own secret, made by `scentd keygen`: no network's
    ca_file: str = ""  # who signs the servers' certificates; default: the system's authorities
    certificate_file: str = ""  # this host's certificate for the servers, and its key
    certificate_key_file: str = ""
    replicas: Annotated[int, Meta(ge=1, le=5)] = 1  # servers that keep what is kept; 3 for a cluster of three
    domain: str = ""  # JetStream's, where the servers that keep are others than these: at a site that is a leaf
    timeout: Seconds = 2.0  # of a question to the servers
    host: list[BusHost] = []

    @property
    def used(self) -> bool:
        return bool(self.url)

    @property
    def allocates(self) -> bool:
        """Whether the allocator here goes by what verifiers of other hosts say."""
        return self.used and any("verify" in host.duties for host in self.host)

    @property
    def has_providers(self) -> bool:
        """Whether an allocator here decides of other hosts' resources, so that it needs a lease."""
        return self.used and any("provide" in host.duties for host in self.host)

    def shares(self, network: str) -> bool:
        """Whether other hosts collect or stamp for a network, so that a profiler here needs the lease."""
        return self.used and any({"collect", "stamp"} & set(h.duties) and h.serves(network) for h in self.host)

    def mistakes(self, path: str) -> list[str]:
        problems = check_positive(self, path, "timeout") + duplicates(f"{path}.host", [h.name for h in self.host])
        if not self.used:
            unused = [name for name in ("name", "key_file", "host") if getattr(self, name)]
            return problems + [f"{path}.url: missing; nats://HOST:4222, or take {path}.{n} away" for n in unused[:1]]
        for i, url in enumerate(self.url):
            parts = urlsplit(url)
            if parts.scheme not in SCHEMES or not parts.hostname:
                problems.append(f"{path}.url[{i}]: {url!r}; write nats://HOST:4222, or tls://HOST:4222")
            elif parts.username or parts.password:
                problems.append(f"{path}.url[{i}]: holds a password, which the log would show; use certificates")
        problems += [
            f"{path}.{setting}: missing; {why}"
            for setting, why in (
                ("name", "the name by which the other hosts know this one"),
                ("key_file", "make one with `scentd keygen`"),
            )
            if not getattr(self, setting)
        ]
        if bool(self.certificate_file) != bool(self.certificate_key_file):
            problems.append(f"{path}.certificate_file: goes with certificate_key_file; write both or none")
        return problems


def check_bus(config: Config) -> list[str]:
    """The rules between [bus] and the networks."""
    bus, names = config.bus, {n.name for n in config.network}
    problems = []
    for i, host in enumerate(bus.host):
        problems += [
            f"bus.host[{i}].networks: no network of this host is named {name!r}{suggestion(name, sorted(names))}"
            for name in host.networks
            if name not in names
        ]
    verifiers = [i for i, h in enumerate(bus.host) if "verify" in h.duties]
    if verifiers and config.network and any(peer.verify for peer in config.peer):
        problems.append(
            f"bus.host[{verifiers[0]}].duties: verify, but this host verifies peers itself; a host that allocates for "
            "others has [[peer]], [[policy]] and no [[network]], or peers with verify = false"
        )
    signers = [h for h in bus.host if "sign" in h.duties]
    for i, network in enumerate(config.network):
        if not bus.used or network.signs:
            continue
        if network.stamps and not network.public_key:
            problems.append(
                f"network[{i}].public_key: missing; what others sign for it is checked by it (`scentd pubkey`)"
            )
        if (network.stamps or network.source) and not any(h.serves(network.name) for h in signers):
            problems.append(
                f'bus.host: none signs for {network.name}; name the profiler: [[bus.host]] with duties = ["sign"]'
            )
    return problems
