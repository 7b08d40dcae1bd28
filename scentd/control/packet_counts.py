"""The workers' counters as the status document shows them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from scentd.control.status import PeerTraffic
from scentd.wire import layout

OTHER = (
    *("icmp_unquoted", "icmp_too_big_sent", "internal_errors", "link_overflow", "uncopyable"),
    *("offload_declined", "offload_failed", "offload_quarantined", "queue_quarantined", "events_lost", "nodes_lost"),
    "duplicate_issuer",  # packets that tell of a second machine with a peer's key
    *("overload_stamp", "overload_verify"),  # packets that a full queue did not take, and that were dropped for it
)


def packets(counters: Counter[str]) -> dict:
    """Packets as the status document counts them: totals, by reason, by treatment."""
    return {
        "stamped": counters["stamped"],
        "accepted": counters["accepted"] + counters["accepted:drop"],
        "absent": verdict(counters, "absent"),
        "rejected": rejected(counters),
        "treated": {k: v for k, v in sorted(counters.items()) if ":" in k and not k.startswith("unstamped:")},
        "unstamped": {reason: counters[f"unstamped:{reason}"] for reason in layout.UNSTAMPED.values()},
    }


def traffic(name: str, counters: Counter[str], **more: Any) -> PeerTraffic:
    """One peer's packets, by its counters; `more` are other members."""
    return PeerTraffic(
        name=name,
        accepted=counters["accepted"],
        rejected={reason: count for reason, count in rejected(counters).items() if count},
        absent=starting(counters, "absent"),
        let_in=sum(count for outcome, count in counters.items() if outcome.endswith(":pass")),
        unstamped=starting(counters, "unstamped"),
        **more,
    )


def summed(peers: Iterable[Counter[str]]) -> PeerTraffic | None:
    """Several peers' packets as one; None if there is no peer."""
    counters = list(peers)
    return traffic("", sum(counters, Counter())) if counters else None


def strangers(totals: Counter[str], peers: Iterable[Counter[str]]) -> PeerTraffic:
    """What is in the totals and no peer's. The totals were read a moment apart, so they may be less."""
    rest = Counter({outcome: n for outcome, n in totals.items() if ":" in outcome and not outcome.startswith("acc")})
    for counters in peers:
        rest.subtract({outcome: n for outcome, n in counters.items() if outcome in rest})
    return traffic("", +rest)


def starting(counters: Counter[str], kind: str) -> dict[str, int]:
    """Packets by the second half of their outcome."""
    halves = ((outcome.partition(":"), count) for outcome, count in sorted(counters.items()))
    return {detail: count for (first, _, detail), count in halves if first == kind and count}


def rejected(counters: Counter[str]) -> dict[str, int]:
    """Rejected packets by reason, with every reason."""
    return {
        name: verdict(counters, name)
        for number, name in layout.VERDICTS.items()
        if number not in (layout.VERDICT_ACCEPTED, layout.VERDICT_ABSENT)
    }


def verdict(counters: Counter[str], name: str) -> int:
    """Packets of one verdict, with any treatment."""
    return sum(n for key, n in counters.items() if key.partition(":")[0] == name)
