"""The workers' counters as the status document shows them. Pure."""

from __future__ import annotations

from collections import Counter

from scentd.wire import layout

OTHER = (
    *("icmp_unquoted", "icmp_too_big_sent", "internal_errors", "link_overflow", "uncopyable"),
    *("offload_declined", "offload_failed", "offload_quarantined", "events_lost", "nodes_lost"),
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
