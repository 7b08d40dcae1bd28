"""What the BPF programs have written into their maps and events (bpf/scent_maps.h), as values. Pure.

The way back of encode.py. Bytes of another length than the struct raise struct.error: the kernel gives no others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from scentd.core.offload.encode import TREATMENTS
from scentd.wire import layout, maps, tag

ADDRESS_LEN = {0: 0, 4: 4, 6: 16}  # by family; 0: nothing was accepted yet


class OffloadEvent(NamedTuple):
    """A pair has a new epoch (`kind` is maps.EVENT_EPOCH), or its profile is complete (EVENT_PROFILE)."""

    kind: int
    pair: int
    epoch: int
    load: float  # 0.0 .. 1.0
    threat: float
    source: bytes  # packed address of the packet that began the epoch or completed the profile
    sealed: bytes  # whole in EVENT_PROFILE only


class PairState(NamedTuple):
    """What the verifier knows of a pair."""

    highest: int  # epoch
    before: int
    since: int  # the Unix second at which the highest was first seen
    seen: int  # bit i: fragment i of the highest
    load: float  # 0.0 .. 1.0, of the highest
    threat: float
    source: bytes  # packed address of the packet that began the highest; empty before the first
    sealed: bytes  # whole if all bits of `seen` are set


def parse_event(data: bytes) -> OffloadEvent:
    """One record of the ring buffer, a struct scent_event."""
    kind, pair, epoch, glance, source, sealed, family, _ = maps.EVENT.unpack(data)
    load, threat = tag.glance_levels(glance)
    return OffloadEvent(kind, pair, epoch, load, threat, source[: ADDRESS_LEN[family]], sealed)


def parse_receiving(value: bytes) -> PairState:
    """A struct scent_receiving."""
    _, highest, before, since, seen, glance, _, _, sealed, family, _, source = maps.RECEIVING.unpack(value)
    load, threat = tag.glance_levels(glance)
    return PairState(highest, before, since, seen, load, threat, source[: ADDRESS_LEN[family]], sealed)


def node(key: bytes) -> tuple[int, bytes]:
    """(pair, packed address) of a struct scent_node."""
    pair, family, address = maps.NODE.unpack(key)
    return pair, address[: ADDRESS_LEN[family]]


def sent_bits(value: bytes) -> tuple[int, int]:
    """(epoch, bits of the fragments that have left) of a struct scent_outgoing. They leave in order at first."""
    *_, sent, _, epoch, _, _ = maps.OUTGOING.unpack(value)
    return epoch, (1 << min(sent, layout.FRAGMENTS)) - 1


def counters_stamp(counts: Sequence[int]) -> dict[str, int]:
    """The stamper's counters (sums over processors) under the names of a worker's report."""
    unstamped = {
        f"unstamped:{reason}": counts[maps.STAMP_COUNT_UNSTAMPED + number]
        for number, reason in layout.UNSTAMPED.items()
    }
    return {
        "stamped": counts[maps.STAMP_COUNT_STAMPED],
        **unstamped,
        "offload_failed": counts[maps.STAMP_COUNT_FAILED],
    }


def counters_verify(counts: Sequence[int]) -> dict[str, int]:
    """The verifier's counters likewise; of outcomes those that there were. Two names are the stamper's as well: add."""
    names = {number: name for name, number in TREATMENTS.items()}
    outcomes = {
        f"{verdict}:{names[treatment]}": counts[len(names) * number + treatment]
        for number, verdict in layout.VERDICTS.items()
        for treatment in names
    }
    accepted = outcomes.pop("accepted:pass")
    return {
        "accepted": accepted,
        **{outcome: count for outcome, count in outcomes.items() if count},
        "offload_declined": counts[maps.VERIFY_COUNT_DECLINED],
        "offload_failed": counts[maps.VERIFY_COUNT_FAILED],
        "events_lost": counts[maps.VERIFY_COUNT_EVENTS_LOST],
        "nodes_lost": counts[maps.VERIFY_COUNT_NODES_LOST],
        "offload_quarantined": counts[maps.VERIFY_COUNT_QUARANTINED],
    }
