"""From the maps and events of the BPF programs (bpf/scent_maps.h) to values. Pure.

encode.py is the other direction. Bytes of another length than the struct raise struct.error; the kernel gives none.
"""

from __future__ import annotations

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
    sealed: bytes  # whole in EVENT_PROFILE only


class PairState(NamedTuple):
    """The verifier's state of a pair. The names are those of struct scent_receiving."""

    highest: int  # epoch
    before: int  # the epoch before it
    since: int  # the Unix second at which the verifier first saw the highest epoch
    seen: int  # bit i: fragment i of the highest epoch has come
    load: float  # 0.0 .. 1.0, of the highest epoch
    threat: float
    source: bytes  # packed address of the packet that began the highest epoch; empty before the first
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


def parse_node(key: bytes) -> tuple[int, bytes]:
    """(pair, packed address) of a struct scent_node."""
    pair, family, address = maps.NODE.unpack(key)
    return pair, address[: ADDRESS_LEN[family]]


def parse_outgoing(value: bytes) -> tuple[int, int]:
    """(epoch, bits of the fragments that have left) of a struct scent_outgoing. The first ten leave in order."""
    *_, sent, _, epoch, _, _ = maps.OUTGOING.unpack(value)
    return epoch, (1 << min(sent, layout.FRAGMENTS)) - 1


def stamp_counters(counts: Sequence[int]) -> dict[str, int]:
    """The stamper's counters, summed over the processors, under the names of a worker's report."""
    unstamped = {
        f"unstamped:{reason}": counts[maps.STAMP_COUNT_UNSTAMPED + number]
        for number, reason in layout.UNSTAMPED.items()
    }
    return {
        "stamped": counts[maps.STAMP_COUNT_STAMPED],
        **unstamped,
        "offload_failed": counts[maps.STAMP_COUNT_FAILED],
    }


def verify_counters(counts: Sequence[int]) -> dict[str, int]:
    """The verifier's counters likewise, without outcomes that have not occurred. Add the stamper's of the same name."""
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
