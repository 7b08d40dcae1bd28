"""From a configuration and its identities to the tables of the packet path. Pure.

A pair is one local network and one peer. Roles and hosts name a pair by the two names; its number belongs to this host
alone. The number stays the same over reloads, so that workers keep the pair's state, and over restarts, because the
offload's maps outlive the daemon.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from scentd.config.sections import Config, Network, Peer
from scentd.core.profile.issue import IssuedPair, metric_slots
from scentd.core.tables import Incoming, StampPair, StampTable, Treatments, VerifyTable
from scentd.prefix import PrefixMap, numeric
from scentd.wire import keys
from scentd.wire.carrier import CARRIERS, NATIVE
from scentd.wire.maps import NO_PAIR

ANY = ("0.0.0.0/0", "::/0")
PairName = tuple[str, str]  # the network's name, the peer's name


@dataclass(frozen=True, repr=False)
class PairSecret:
    """The secret that only the two ends of a pair can derive. A host without the network's private key has none."""

    identity: keys.Identity
    public: keys.Public
    issued: IssuedPair  # for the direction from this end to the peer

    def receive_keys(self, period: int) -> keys.PairKeys:
        return keys.direction_keys(self.issued.secret, self.public, self.identity.public, period)

    def tag_key(self, epoch: int) -> bytes:
        """The tag key of this end's packets of an epoch."""
        ends = self.identity.public, self.public
        return keys.direction_keys(self.issued.secret, *ends, keys.period_of(epoch)).tag

    def pseudonym_key(self) -> bytes:
        """The key of the pseudonyms by which the peer names its nodes to us."""
        return keys.pseudonym_key(self.issued.secret, self.public, self.identity.public)


@dataclass(frozen=True, repr=False)
class Pair:
    """One local network and one peer."""

    number: int
    network: Network
    peer: Peer
    public: keys.Public  # the peer's
    secret: PairSecret | None
    revoked: bool = False  # the peer's key: nothing is accepted by it, or sealed for it

    @property
    def name(self) -> PairName:
        return self.network.name, self.peer.name

    @property
    def stamps(self) -> bool:
        """Whether this host stamps the network's packets to the peer."""
        return self.network.stamps and self.peer.stamp and not self.revoked

    @property
    def verifies(self) -> bool:
        """Whether this host verifies the peer's packets to the network."""
        return self.peer.verify and self.secret is not None and not self.revoked

    def slots(self) -> dict[str, int]:
        return metric_slots(self.peer.metrics)


def carrier_name(peer: Peer, version: int) -> str:
    """The name of the carrier in packets of this IP version to the peer."""
    return NATIVE[version]


def overhead(peer: Peer, version: int) -> int:
    """The overhead of packets of this IP version to the peer, bytes."""
    return CARRIERS[carrier_name(peer, version)].overhead


class Pairs:
    """All pairs of a configuration. `identities`: by the network's name, of networks whose private key is on this host;
    `numbers`: by the pair's name. `revoked`: public keys, as `scentd pubkey` prints them.
    """

    def __init__(
        self,
        config: Config,
        identities: Mapping[str, keys.Identity],
        numbers: Mapping[PairName, int],
        revoked: Container[str] = (),
    ) -> None:
        self.config = config
        self.identities = identities
        self.all: list[Pair] = []
        for network in config.network:
            for peer in config.peer:
                public, number = keys.parse_public(peer.public_key), numbers[network.name, peer.name]
                identity = identities.get(network.name)
                secret = None
                if identity is not None:
                    issued = IssuedPair(network.name, peer.name, identity, public)
                    secret = PairSecret(identity, public, issued)
                self.all.append(Pair(number, network, peer, public, secret, str(public) in revoked))
        self.by_number = {p.number: p for p in self.all}
        self.by_name = {p.name: p for p in self.all}

    def issued_pairs(self, network: str) -> list[IssuedPair]:
        """The pairs for which a network's profiles are sealed."""
        pairs = (p for p in self.all if p.network.name == network and p.peer.stamp and not p.revoked)
        return [p.secret.issued for p in pairs if p.secret]

    def tag_key(self, number: int, epoch: int) -> bytes | None:
        """The tag key of this end's packets of a pair and epoch.

        None: this host stamps no pair of that number, or does not have the network's private key.
        """
        pair = self.by_number.get(number)
        return pair.secret.tag_key(epoch) if pair is not None and pair.stamps and pair.secret is not None else None

    def unstamped_prefixes(self) -> list[str]:
        """The prefixes of networks for which this host stamps nothing."""
        return [prefix for n in self.config.network if not n.stamps for prefix in n.addresses]

    def uncovered(self, addresses: Iterable[str]) -> list[str]:
        """Those of this host's addresses whose packets to peers leave without a scent: no stamped network has them.

        None of a gateway (`stamp.forwarded`) of whose addresses no network has any: it only forwards for its networks.
        """
        versions = {numeric(a)[0] for pair in self.all if pair.stamps for a in pair.peer.addresses}
        stamped = [n.addresses or ANY for n in self.config.network if n.stamps]
        covers = PrefixMap((prefix, True) for prefixes in stamped for prefix in prefixes)
        usable = [a for a in map(ip_address, addresses) if a.version in versions and not a.is_link_local]
        outside = [str(a) for a in usable if not covers.get(a.packed)]
        return [] if self.config.stamp.forwarded and len(outside) == len(usable) else outside

    def stamp_table(self, limits: Sequence[tuple[str, int]]) -> StampTable:
        """`limits` are full path MTUs by destination prefix."""
        stamped = [n for n in self.config.network if n.stamps]
        # A network has the lowest number of its pairs, so that its number lasts over reloads as those of pairs do.
        first = {p.network.name: p.number for p in sorted(self.all, key=lambda p: -p.number)}
        networks = {n.name: first[n.name] for n in stamped if n.name in first}
        peers = {p.name: i for i, p in enumerate(self.config.peer)}
        return StampTable(
            networks=tuple((a, networks[n.name]) for n in stamped if n.name in networks for a in n.addresses or ANY),
            peers=tuple((prefix, peers[p.name]) for p in self.config.peer if p.stamp for prefix in p.addresses),
            pairs=tuple(
                StampPair(
                    p.number,
                    networks[p.network.name],
                    peers[p.peer.name],
                    p.peer.bind == "sender",
                    p.peer.stamp_ipv6_fragments,
                    carrier_name(p.peer, 4),
                    carrier_name(p.peer, 6),
                )
                for p in self.all
                if p.stamps
            ),
            limits=tuple(limits),
        )

    def verify_table(self, period: int) -> VerifyTable:
        """The table has keys of the period and of its two neighbours. A pair's number is its row in the epoch file."""
        verify = self.config.verify
        first = {p.peer.name: p.number for p in sorted(self.all, key=lambda p: -p.number)}
        return VerifyTable(
            incoming=tuple(incoming(p, p.secret, period) for p in self.all if p.verifies and p.secret is not None),
            treatments=tuple(
                (
                    prefix,
                    Treatments(p.rejected, p.absent, p.absent_ipv6_fragments or p.absent, first.get(p.name, NO_PAIR)),
                )
                for p in self.config.peer
                for prefix in p.addresses
            ),
            default=Treatments(verify.rejected, verify.absent, verify.absent),
            max_age=verify.max_age,
            max_future=verify.max_future,
            grace=verify.grace,
        )


def incoming(pair: Pair, secret: PairSecret, period: int) -> Incoming:
    derived = {n: secret.receive_keys(n) for n in (period - 1, period, period + 1)}
    return Incoming(
        pair=pair.number,
        key_id=pair.public.key_id,
        network=tuple(pair.network.addresses),
        peer=tuple(pair.peer.addresses),
        slot=pair.number,
        tag_keys={n: k.tag for n, k in derived.items()},
        glance_keys={n: k.glance for n, k in derived.items()},
        sender_bound=pair.peer.bind == "sender",
    )
