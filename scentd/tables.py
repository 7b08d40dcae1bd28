"""What the packet path is told: plain values that cross from the daemon to its workers.

The daemon holds the private keys; a worker holds the tag keys of its pairs and no
more. A pair is one local network and one peer, known by a small number.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Treatment = Literal["drop", "reject", "pass"]


class Outgoing(Struct, frozen=True):
    """All that a stamper needs to scent one pair's packets in one epoch."""

    pair: int
    epoch: int
    key_id: bytes
    tag_key: bytes
    glance: int  # masked
    fragments: tuple[bytes, ...]
    expires: float  # Unix time after which it is too old to send


class StampPair(Struct, frozen=True):
    pair: int
    network: int
    peer: int
    sender_bound: bool = False  # bind = "sender"
    ipv6_fragments: bool = False


class StampTable(Struct, frozen=True):
    """Which source and destination make which pair; `limits` are full path MTUs by prefix."""

    networks: tuple[tuple[str, int], ...] = ()  # prefix -> network
    peers: tuple[tuple[str, int], ...] = ()  # prefix -> peer
    pairs: tuple[StampPair, ...] = ()
    limits: tuple[tuple[str, int], ...] = ()


class Incoming(Struct, frozen=True):
    """One pair as its receiver knows it."""

    pair: int
    key_id: bytes
    network: tuple[str, ...]  # local prefixes; empty: any
    peer: tuple[str, ...]  # the peer's addresses
    slot: int  # in the table of highest epochs
    tag_keys: dict[int, bytes]  # by period
    glance_keys: dict[int, bytes]
    sender_bound: bool = False


class Treatments(Struct, frozen=True):
    """What happens to packets that are not accepted, from one range of sources."""

    rejected: Treatment
    absent: Treatment
    absent_ipv6_fragment: Treatment


class VerifyTable(Struct, frozen=True):
    incoming: tuple[Incoming, ...] = ()
    treatments: tuple[tuple[str, Treatments], ...] = ()  # by source prefix
    default: Treatments = Treatments("drop", "pass", "pass")
    max_age: float = 60.0
    max_future: float = 10.0
    grace: float = 2.0


class Fragment(Struct, frozen=True, tag=True):
    """A worker accepted a fragment that it had not seen in this epoch."""

    pair: int
    epoch: int
    index: int
    data: bytes
    load: float  # the glance, unmasked: 0.0 .. 1.0
    threat: float
    source: bytes
