"""From a configuration and its identities to the tables of the packet path. Pure.

A pair is one local network and one peer. Its number stays the same over reloads, so
that workers keep what they know of it, and over restarts, because the offload's maps outlive the daemon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scentd import config as schema
from scentd.issue import IssuedPair, metric_slots
from scentd.tables import Incoming, StampPair, StampTable, Treatments, VerifyTable
from scentd.wire import keys

ANY = ("0.0.0.0/0", "::/0")


@dataclass(frozen=True, repr=False)
class Pair:
    """One local network and one peer, with what only the two can derive."""

    number: int
    network: schema.Network
    peer: schema.Peer
    issued: IssuedPair  # this end sends; it holds the pair's secret
    identity: keys.Identity
    public: keys.Public

    def receive_keys(self, period: int) -> keys.PairKeys:
        return keys.direction_keys(self.issued.secret, self.public, self.identity.public, period)

    def pseudonym_key(self) -> bytes:
        """Of the peer's nodes, as it names them to us."""
        return keys.pseudonym_key(self.issued.secret, self.public, self.identity.public)

    def slots(self) -> dict[str, int]:
        return metric_slots(self.peer.metrics)


def names(config: schema.Config, identities: Mapping[str, keys.Identity]) -> list[tuple[bytes, bytes]]:
    """(our public key, the peer's) of every pair, in the order of Pairs.all."""
    publics = [keys.parse_public(peer.public_key).raw for peer in config.peer]
    return [(identities[network.name].public.raw, public) for network in config.network for public in publics]


class Pairs:
    """All pairs of a configuration. `numbers` by what names() gives is kept by the daemon and extended here."""

    def __init__(
        self,
        config: schema.Config,
        identities: Mapping[str, keys.Identity],
        numbers: dict[tuple[bytes, bytes], int],
    ) -> None:
        self.config = config
        self.identities = identities
        self.all: list[Pair] = []
        for network in config.network:
            for peer in config.peer:
                public = keys.parse_public(peer.public_key)
                identity = identities[network.name]
                key = (identity.public.raw, public.raw)
                number = numbers.setdefault(key, len(numbers))
                issued = IssuedPair(number, identity, public)
                self.all.append(Pair(number, network, peer, issued, identity, public))
        self.by_number = {p.number: p for p in self.all}

    def of_network(self, name: str) -> list[Pair]:
        """The pairs that a network's profiles are sealed for."""
        return [p for p in self.all if p.network.name == name and p.peer.stamp]

    def tag_key(self, number: int, epoch: int) -> bytes | None:
        """What a pair's packets of an epoch are tagged with by this end; None if it stamps none of that number."""
        pair = self.by_number.get(number)
        if pair is None or not pair.peer.stamp:
            return None
        ends = pair.identity.public, pair.public
        return keys.direction_keys(pair.issued.secret, *ends, keys.period_of(epoch)).tag

    def stamp_table(self, limits: Sequence[tuple[str, int]]) -> StampTable:
        """`limits` are full path MTUs by destination prefix."""
        senders = [n for n in self.config.network if n.collect]
        # By the first of its pairs: the number of a network lasts over reloads as those of pairs do.
        first = {p.network.name: p.number for p in sorted(self.all, key=lambda p: -p.number)}
        networks = {n.name: first[n.name] for n in senders if n.name in first}
        peers = {p.name: i for i, p in enumerate(self.config.peer)}
        return StampTable(
            networks=tuple((a, networks[n.name]) for n in senders if n.name in networks for a in n.addresses or ANY),
            peers=tuple((prefix, peers[p.name]) for p in self.config.peer if p.stamp for prefix in p.addresses),
            pairs=tuple(
                StampPair(
                    p.number,
                    networks[p.network.name],
                    peers[p.peer.name],
                    p.peer.bind == "sender",
                    p.peer.stamp_ipv6_fragments,
                )
                for p in self.all
                if p.peer.stamp and p.network.name in networks
            ),
            limits=tuple(limits),
        )

    def verify_table(self, period: int) -> VerifyTable:
        """Keys of the period, the one before and the next. A pair's number is its row in the epoch file."""
        verify = self.config.verify
        return VerifyTable(
            incoming=tuple(self._incoming(p, period) for p in self.all if p.peer.verify),
            treatments=tuple(
                (prefix, Treatments(p.rejected, p.absent, p.absent_ipv6_fragments or p.absent))
                for p in self.config.peer
                for prefix in p.addresses
            ),
            default=Treatments(verify.rejected, verify.absent, verify.absent),
            max_age=verify.max_age,
            max_future=verify.max_future,
            grace=verify.grace,
        )

    @staticmethod
    def _incoming(pair: Pair, period: int) -> Incoming:
        derived = {n: pair.receive_keys(n) for n in (period - 1, period, period + 1)}
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
