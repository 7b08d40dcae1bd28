"""From the maps and events of the BPF programs (bpf/scent_maps.h) to values. Pure.

encode.py is the other direction. Bytes of another length than the struct raise struct.error; the kernel gives none.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

from scentd.core.offload.encode import TREATMENTS
from scentd.wire import layout, maps, tag

ADDRESS_LEN = {0: 0, 4: 4, 6: 16}  # by family; 0 before the first accepted packet


class OffloadEvent(NamedTuple):
    """A pair has a new epoch (`kind` is maps.EVENT_EPOCH) or a complete profile (EVENT_PROFILE)."""

    kind: int
    pair: int
    epoch: int
    load: float  # 0.0 .. 1.0
    threat: float
    source: bytes  # packed address of the packet that began the epoch or completed the profile
    key_ids: bytes  # 8: of the peer's key and of ours
    sealed: bytes  # whole in EVENT_PROFILE only


class RefusedPacket(NamedTuple):
    """A packet that the program has dropped and whose sender is to be told."""

    head: bytes  # its first bytes
    length: int  # of the whole IP packet
    interface: int  # index


class PairState(NamedTuple):
    """The verifier's state of a pair. The names are those of struct scent_receiving."""

    highest: int  # epoch
    before: int  # the epoch before it
    since: int  # the Unix second at which the verifier first saw the highest epoch
    seen: int  # bit i: fragment i of the highest epoch has come
    load: float  # 0.0 .. 1.0, of the highest epoch
    threat: float
    source: bytes  # packed address of the packet that began the highest epoch; empty before the first
    key_ids: bytes  # 8: of the peer's key and of ours, in the highest epoch
    sealed: bytes  # whole if all bits of `seen` are set
    accepted: int  # packets whose scent was looked up, since the pair's entry was made
    leapt: int  # epochs up to this one were accepted while both ends' clocks were wrong
    lag: int  # seconds below the highest epoch that are accepted


class PacketTally(NamedTuple):
    """Packets of a peer that had one outcome."""

    pair: int  # any of the peer's
    name: str  # the outcome, as in a worker's report
    packets: int
    at: int  # verifying: the Unix second of the last one
    epoch: int  # verifying: the epoch for which the last one was refused, or 0


def parse_event(data: bytes) -> OffloadEvent | RefusedPacket:
    """One record of the ring buffer: a struct scent_event, or a struct scent_refused."""
    if int.from_bytes(data[:4], sys.byteorder) == maps.EVENT_REFUSED:
        _, interface, length, held, packet = maps.REFUSED.unpack(data)
        return RefusedPacket(packet[:held], length, interface)
    kind, pair, epoch, glance, source, key_ids, sealed, family, _ = maps.EVENT.unpack(data)
    load, threat = tag.glance_levels(glance)
    return OffloadEvent(kind, pair, epoch, load, threat, source[: ADDRESS_LEN[family]], key_ids, sealed)


def parse_receiving(value: bytes) -> PairState:
    """A struct scent_receiving."""
    _, highest, before, since, seen, glance, _, _, leapt, _, _, lag, *rest = maps.RECEIVING.unpack(value)
    accepted, key_ids, *_, sealed, family, _, source = rest
    address = source[: ADDRESS_LEN[family]]
    return PairState(
        highest, before, since, seen, *tag.glance_levels(glance), address, key_ids, sealed, accepted, leapt, lag
    )


def parse_node(key: bytes) -> tuple[int, bytes]:
    """(pair, packed address) of a struct scent_node."""
    pair, family, address = maps.NODE.unpack(key)
    return pair, address[: ADDRESS_LEN[family]]


def parse_outgoing(value: bytes) -> tuple[int, int]:
    """(epoch, bits of the fragments that have left) of a struct scent_outgoing. The first ten leave in order."""
    *_, sent, _, _, epoch, _, _ = maps.OUTGOING.unpack(value)
    return epoch, (1 << min(sent, layout.FRAGMENTS)) - 1


def parse_tally(program: str, key: bytes, values: Sequence[bytes]) -> PacketTally:
    """A struct scent_tally_key, and the struct scent_tally of each processor."""
    pair, counter = maps.TALLY_KEY.unpack(key)
    parts = [maps.TALLY.unpack(value) for value in values]
    at, epoch = max((at, epoch) for _, at, epoch in parts)
    return PacketTally(pair, COUNTERS[program][counter], sum(packets for packets, _, _ in parts), at, epoch)


def verify_names() -> dict[int, str]:
    names = {number: name for name, number in TREATMENTS.items()}
    outcomes = {
        len(names) * number + treatment: f"{verdict}:{name}"
        for number, verdict in layout.VERDICTS.items()
        for treatment, name in names.items()
    }
    outcomes[len(names) * layout.VERDICT_ACCEPTED + TREATMENTS["pass"]] = "accepted"
    return outcomes


# The outcomes that each program counts: the name in a worker's report, by the index of the counter.
COUNTERS: dict[str, dict[int, str]] = {
    "stamp": {
        maps.STAMP_COUNT_STAMPED: "stamped",
        **{maps.STAMP_COUNT_UNSTAMPED + number: f"unstamped:{reason}" for number, reason in layout.UNSTAMPED.items()},
        maps.STAMP_COUNT_FAILED: "offload_failed",
    },
    "verify": {
        **verify_names(),
        maps.VERIFY_COUNT_DECLINED: "offload_declined",
        maps.VERIFY_COUNT_FAILED: "offload_failed",
        maps.VERIFY_COUNT_EVENTS_LOST: "events_lost",
        maps.VERIFY_COUNT_NODES_LOST: "nodes_lost",
        maps.VERIFY_COUNT_QUARANTINED: "offload_quarantined",
        maps.VERIFY_COUNT_DUPLICATE_ISSUER: "duplicate_issuer",
    },
}
