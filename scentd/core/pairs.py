"""From a configuration and its identities to the tables of the packet path. Pure.

A pair is one local network and one peer. Roles and hosts name a pair by the two names; its number belongs to this host
alone. The number stays the same over reloads, so that workers keep the pair's state, and over restarts, because the
offload's maps outlive the daemon.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address

from scentd.config.origin import mark_bits
from scentd.config.sections import Config, Network, Peer
from scentd.core import shared
from scentd.core.profile.issue import IssuedPair, metric_slots
from scentd.core.tables import INTERFACE, Incoming, IncomingKeys, Origin, StampPair, StampTable, Treatments, VerifyTable
from scentd.model import Barred, PeerPrefix
from scentd.prefix import PrefixMap, numeric
from scentd.wire import keys
from scentd.wire.carrier import CARRIERS, NATIVE

ANY = ("0.0.0.0/0", "::/0")
PairName = tuple[str, str]  # the network's name, the peer's name
Identities = Sequence[keys.Identity]  # of one network: the one in use, then the next


@dataclass(frozen=True, repr=False)
class PairSecret:
    """The secret that one identity of ours and one public key of the peer derive, and nobody else can."""

    identity: keys.Identity
    public: keys.Public

    @cached_property
    def shared(self) -> bytes:
        return keys.pair_secret(self.identity, self.public)

    @property
    def key_ids(self) -> bytes:
        """Of the peer's key and of ours, 8 bytes."""
        return self.public.key_id + self.identity.public.key_id

    def receive_keys(self, period: int) -> keys.PairKeys:
        return keys.direction_keys(self.shared, self.public, self.identity.public, period)

    def tag_key(self, epoch: int) -> bytes:
        """The tag key of this end's packets of an epoch."""
        ends = self.identity.public, self.public
        return keys.direction_keys(self.shared, *ends, keys.period_of(epoch)).tag

    @cached_property
    def pseudonym_key(self) -> bytes:
        """The key of the pseudonyms by which the peer names its nodes to us."""
        return keys.pseudonym_key(self.shared, self.public, self.identity.public)


@dataclass(frozen=True, repr=False)
class Pair:
    """One local network and one peer. Either may have a second key while it changes its key."""

    number: int
    network: Network
    peer: Peer
    publics: tuple[keys.Public, ...]  # the peer's, without revoked ones; the newest is last
    revoked: tuple[keys.Public, ...]  # nothing is accepted by these, or sealed for them
    identities: tuple[keys.Identity, ...]  # ours, the one in use first; none on a host without the private key

    @property
    def name(self) -> PairName:
        return self.network.name, self.peer.name

    @property
    def stamps(self) -> bool:
        """Whether this host stamps the network's packets to the peer."""
        return self.network.stamps and self.peer.stamp and bool(self.publics)

    @property
    def verifies(self) -> bool:
        """Whether this host verifies the peer's packets to the network."""
        return self.peer.verify and self.network.receives and bool(self.secrets)

    @cached_property
    def secrets(self) -> tuple[PairSecret, ...]:
        """Of each key of the peer with each of ours."""
        return tuple(PairSecret(identity, public) for public in self.publics for identity in self.identities)

    def secret_of(self, key_ids: bytes) -> PairSecret | None:
        """The secret of a packet or profile; None if one of the two keys is no longer in use."""
        return next((s for s in self.secrets if s.key_ids == key_ids), None)

    @cached_property
    def issued(self) -> IssuedPair | None:
        """The direction from this end to the peer: signed by our key in use, sealed for the peer's newest key."""
        ends = [s for s in self.secrets if s.identity is self.identities[0] and s.public is self.publics[-1]]
        if not ends:
            return None
        return IssuedPair(self.network.name, self.peer.name, ends[0].identity, ends[0].public, ends[0].shared)

    def slots(self) -> dict[str, int]:
        return metric_slots(self.peer.metrics)


def carrier_name(peer: Peer, version: int) -> str:
    """The name of the carrier in packets of this IP version to the peer."""
    return NATIVE[version]


def overhead(peer: Peer, version: int) -> int:
    """The overhead of packets of this IP version to the peer, bytes."""
    return CARRIERS[carrier_name(peer, version)].overhead


class Pairs:
    """All pairs of a configuration. `identities`: by the network's name, of networks whose private key is on this host,
    the one in use first; `numbers`: by the pair's name. `revoked`: public keys, as `scentd pubkey` prints them.
    """

    def __init__(
        self,
        config: Config,
        identities: Mapping[str, Identities],
        numbers: Mapping[PairName, int],
        revoked: Container[str] = (),
    ) -> None:
        self.config = config
        self.identities = identities
        self.revoked = revoked
        publics = {p.name: [keys.parse_public(text) for text in p.public_keys] for p in config.peer}
        usable = {name: tuple(k for k in found if str(k) not in revoked) for name, found in publics.items()}
        stolen = {name: tuple(k for k in found if str(k) in revoked) for name, found in publics.items()}
        own = {n.name: tuple(identities.get(n.name, ())) for n in config.network}
        self.all = [
            Pair(numbers[n.name, p.name], n, p, usable[p.name], stolen[p.name], own[n.name])
            for n in config.network
            for p in config.peer
        ]
        self.shared = shared.shared(config.peer)
        self.by_number = {p.number: p for p in self.all}
        self.by_name = {p.name: p for p in self.all}

    def key_ids(self, network: str) -> tuple[str, str]:
        """The key ids of a network's key in use and of its next one, as hex; "" for one that it does not have here."""
        found = [identity.public.key_id.hex() for identity in self.identities.get(network, ())]
        return (found[0] if found else "", found[1] if found[1:] else "")

    def issued_pairs(self, network: str) -> list[IssuedPair]:
        """The pairs for which a network's profiles are sealed."""
        pairs = (p for p in self.all if p.network.name == network and p.peer.stamp)
        return [p.issued for p in pairs if p.issued is not None]

    def tag_keys(self, number: int, epoch: int) -> list[bytes] | None:
        """The tag keys that this end's packets of a pair and epoch may have, one for each pair of keys.

        None: this host stamps no pair of that number, or does not have the network's private key.
        """
        pair = self.by_number.get(number)
        if pair is None or not pair.stamps or not pair.identities:
            return None
        return [secret.tag_key(epoch) for secret in pair.secrets]

    def barred(self, barred: Barred) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
        """The Unix time of release of each prefix; and by pair, of each from which only the pair's peer is barred."""
        prefixes: dict[str, float] = {}
        of_pairs: dict[int, dict[str, float]] = {}
        for sender, until in barred.until.items():
            if not isinstance(sender, PeerPrefix):
                prefixes[str(sender)] = until
                continue
            for pair in self.all:
                if pair.peer.name == sender.peer and pair.verifies:
                    of_pairs.setdefault(pair.number, {})[str(sender.prefix)] = until
        return prefixes, of_pairs

    def unstamped_prefixes(self) -> list[str]:
        """The prefixes of networks for which this host stamps nothing."""
        silent = (n for n in self.config.network if not n.stamps and not n.has_origin)
        return [prefix for n in silent for prefix in n.addresses]

    def uncovered(self, addresses: Iterable[str]) -> list[str]:
        """Those of this host's addresses whose packets to peers leave without a scent: no stamped network has them.

        None of a gateway (`stamp.forwarded`) of whose addresses no network has any: it only forwards for its networks.
        """
        versions = {numeric(a)[0] for pair in self.all if pair.stamps for a in pair.peer.addresses}
        stamped = [n.addresses or ANY for n in self.config.network if n.stamps and not n.has_origin]
        covers = PrefixMap((prefix, True) for prefixes in stamped for prefix in prefixes)
        usable = [a for a in map(ip_address, addresses) if a.version in versions and not a.is_link_local]
        outside = [str(a) for a in usable if not covers.get(a.packed)]
        return [] if self.config.stamp.forwarded and len(outside) == len(usable) else outside

    def stamp_table(self, limits: Sequence[tuple[str, int]], interfaces: Mapping[str, int] | None = None) -> StampTable:
        """`limits` are full path MTUs by destination prefix; `interfaces` the indexes of those that there are."""
        stamped = [n for n in self.config.network if n.stamps]
        # A network has the lowest number of its pairs, so that its number lasts over reloads as those of pairs do.
        first = {p.network.name: p.number for p in sorted(self.all, key=lambda p: -p.number)}
        networks = {n.name: first[n.name] for n in stamped if n.name in first}
        peers = {p.name: i for i, p in enumerate(self.config.peer)}
        served = [n for n in stamped if n.name in networks]
        return StampTable(
            networks=tuple((a, networks[n.name]) for n in served if not n.has_origin for a in n.addresses or ANY),
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
            origins=tuple(origins(served, networks, interfaces or {})),
        )

    def verify_table(self, period: int) -> VerifyTable:
        """The table has keys of the period and of its two neighbours. A pair's number is its row in the epoch file."""
        verify = self.config.verify
        first = {p.peer.name: p.number for p in sorted(self.all, key=lambda p: -p.number)}
        return VerifyTable(
            incoming=tuple(incoming(p, period) for p in self.all if p.verifies),
            treatments=tuple(shared.treatments(self.config.peer, first)),
            default=Treatments(verify.rejected, verify.absent, verify.absent),
            max_age=verify.max_age,
            max_future=verify.max_future,
            grace=verify.grace,
        )


def origins(served: Iterable[Network], numbers: Mapping[str, int], interfaces: Mapping[str, int]) -> Iterator[Origin]:
    """The origins of these networks. An interface that is not there has none."""
    marked = []
    for network in served:
        for name in network.interface:
            if name in interfaces:
                yield Origin(INTERFACE, interfaces[name], numbers[network.name])
        if network.mark:
            value, mask = mark_bits(network.mark)
            marked.append(Origin(mask, value, numbers[network.name]))
    yield from marked


def incoming(pair: Pair, period: int) -> Incoming:
    return Incoming(
        pair=pair.number,
        network=tuple(pair.network.addresses),
        peer=tuple(pair.peer.addresses),
        slot=pair.number,
        keys=tuple(incoming_keys(secret, period) for secret in pair.secrets),
        sender_bound=pair.peer.bind == "sender",
    )


def incoming_keys(secret: PairSecret, period: int) -> IncomingKeys:
    period = max(period, 1)  # a clock that is in 1970 has none before
    derived = {n: secret.receive_keys(n) for n in (period - 1, period, period + 1)}
    return IncomingKeys(
        key_ids=secret.key_ids,
        tag_keys={n: k.tag for n, k in derived.items()},
        glance_keys={n: k.glance for n, k in derived.items()},
    )
