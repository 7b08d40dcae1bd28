"""The tables of the packet path: plain values that cross from the daemon to its workers.

The daemon has the private keys; a worker has the tag keys of its pairs, and no other key. A pair is one local network
and one peer. Its number is small and belongs to this host alone.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import NamedTuple

from msgspec import Struct

from scentd.wire.carrier import NATIVE
from scentd.wire.layout import Treatment
from scentd.wire.maps import NO_PAIR

INTERFACE = 0  # in the place of a mask


class EpochRow(NamedTuple):
    """A slot of the epoch file, in the order of its numbers."""

    epoch: int = 0  # the highest
    since: int = 0  # the second at which it was first seen
    before: int = 0  # the highest epoch of an earlier second, the oldest that grace is for
    leapt: int = 0  # the last epoch of a stretch that was seen while both ends' clocks were ahead
    lag: int = 0  # seconds below the highest that are accepted: by how much the network's stampers may lag


EPOCH_ROW = len(EpochRow._fields)
Slots = MutableSequence[int] | memoryview  # EPOCH_ROW numbers for each slot
SINCE, BEFORE, LEAPT, LAG = (EpochRow._fields.index(name) for name in ("since", "before", "leapt", "lag"))


def raise_row(values: Slots, slot: int, epoch: int, since: int) -> None:
    """Note an accepted epoch if it is the highest, and was first seen at the Unix second `since`."""
    at = EPOCH_ROW * slot
    highest = values[at]
    if epoch > highest:
        # An alarm's epoch may follow another at once: packets of the one before both are still on their way.
        if since != values[at + SINCE] or not values[at + BEFORE]:
            values[at + BEFORE] = highest
        values[at + SINCE] = since
        values[at] = epoch  # last: who reads it finds the others


class StampPair(Struct, frozen=True):
    pair: int
    network: int
    peer: int
    sender_bound: bool = False  # bind = "sender"
    ipv6_fragments: bool = False
    carrier4: str = NATIVE[4]  # the carrier of its IPv4 packets, a name of wire.carrier.CARRIERS
    carrier6: str = NATIVE[6]

    def carrier(self, version: int) -> str:
        return self.carrier4 if version == 4 else self.carrier6


class Origin(Struct, frozen=True):
    """Where a network's packets come from, whatever their addresses: by which interface, or with which mark."""

    mask: int  # of the packet mark; INTERFACE: the value is an interface's index
    value: int
    network: int


class StampTable(Struct, frozen=True):
    """The pair of each source and destination; `limits` are full path MTUs by prefix.

    The first origin that fits says the network; only if none does, the source address.
    """

    networks: tuple[tuple[str, int], ...] = ()  # prefix -> network
    peers: tuple[tuple[str, int], ...] = ()  # prefix -> peer
    pairs: tuple[StampPair, ...] = ()
    limits: tuple[tuple[str, int], ...] = ()
    origins: tuple[Origin, ...] = ()  # interfaces first


class IncomingKeys(Struct, frozen=True):
    """What one public key of the peer and one private key of the network derive at the receiver."""

    key_ids: bytes  # 8: of the peer's key and of ours
    tag_keys: dict[int, bytes]  # by period
    glance_keys: dict[int, bytes]


class Incoming(Struct, frozen=True):
    """One pair at its receiver."""

    pair: int
    network: tuple[str, ...]  # local prefixes; empty: any
    peer: tuple[str, ...]  # the peer's addresses
    slot: int  # in the table of highest epochs
    keys: tuple[IncomingKeys, ...]  # of each key of the peer with each of ours
    sender_bound: bool = False

    def by_sender(self) -> dict[bytes, tuple[IncomingKeys, ...]]:
        """The keys under which a packet may come, by the key id that it names: one or two, ours in use first."""
        senders = dict.fromkeys(k.key_ids[:4] for k in self.keys)
        return {sender: tuple(k for k in self.keys if k.key_ids[:4] == sender) for sender in senders}


class Treatments(Struct, frozen=True):
    """The treatment of packets that are not accepted, from one range of sources."""

    rejected: Treatment
    absent: Treatment
    absent_ipv6_fragment: Treatment
    pair: int = NO_PAIR  # any of the peer's, or NO_PAIR


class VerifyTable(Struct, frozen=True):
    incoming: tuple[Incoming, ...] = ()
    treatments: tuple[tuple[str, Treatments], ...] = ()  # by source prefix
    default: Treatments = Treatments("drop", "pass", "pass")
    max_age: float = 60.0
    max_future: float = 10.0
    grace: float = 2.0
