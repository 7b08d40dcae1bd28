"""Tells the log whose packets are refused, absent or unstamped: the first of a kind at once, more of it rarely."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from itertools import islice

from scentd.roles.traffic import Outcomes

log = logging.getLogger(__name__)

PAUSE = 600.0  # seconds between two lines about the same peer and outcome
LINES = 20  # a look; the others come with the next one
CLOCK = "compare the clocks of both ends (chronyc tracking, timedatectl)"
KEYS = "compare peer.public_key here with `scentd pubkey` there"
REJECTED = {  # what to do, by reason
    "malformed": "something on the path or at the sender mangles packets: `scentd decode` shows those of a capture",
    "unsupported-version": "the sender runs another version: update one of the two",
    "unknown-key": f"{KEYS}; is the key revoked here (`scentd revoke`)?",
    "wrong-address": "compare peer.addresses here with the addresses from which it sends, and network.addresses",
    "wrong-binding": 'peer.bind must be the same at both ends; behind NAT it is "sender"',
    "future": f"its clock is ahead, or ours is behind: {CLOCK}",
    "stale": f"its clock is behind, ours is ahead, or it issues nothing: {CLOCK}",
    "bad-tag": f"{KEYS}; or something rewrites addresses or ports on the path: peer.bind; or one end is older",
    "replayed-epoch": f"somebody replays packets, its clock was set back, a gateway of its lags (its network.lag), or "
    f"two machines have its key: {CLOCK}",
}
DUPLICATE = (
    "tell of a second machine with its key (a clone, a restored snapshot), or of somebody who replays: "
    "give each machine a key of its own"
)
ABSENT = 'its stamper does not run, or the path drops options; peer.absent = "pass" only counts them'
UNSTAMPED = {
    "no-profile": "nothing was issued for them in time: see the network's sources and its key",
    "not-a-peer": "the network signs nothing for this peer",
    "no-room": "their IPv4 options leave no room",
    "headers": "their IPv6 headers leave no room",
    "too-big": "they exceed the path's MTU with a scent: lower the MTU of what sends them; `scentd doctor` says where "
    "there is no room for scents",
    "ipv6-fragment": "IPv6 fragments: peer.stamp_ipv6_fragments, if the peer can take them",
    "malformed": "whatever sends them sends no valid IP",
    "translated": "this host's NAT changes their source behind the queue: keep SNAT and MASQUERADE from peers, let the "
    'offload stamp them, or set peer.bind = "sender" at both ends',
    "tunnelled": "IPv6 inside an IPsec tunnel of this host has no scent: use transport mode, if the peer is strict",
    "masqueraded": "forwarded under an address of this host, and no rule of ours saw whose they are: if they are our "
    "network's, keep packets to peers out of nftables flow tables",
}


class RefusalLog:
    def __init__(self) -> None:
        self._told: Counter[tuple[str, str]] = Counter()  # packets that were told, by peer and outcome
        self._due: dict[tuple[str, str], float] = {}  # monotonic time before which nothing more is said

    def look(self, outcomes: Outcomes, now: float) -> None:
        """`outcomes` are totals, by peer; `now` is monotonic."""
        for peer, packets, outcome, text in islice(self._fresh(outcomes, now), LINES):
            self._told[peer, outcome] += packets
            self._due[peer, outcome] = now + PAUSE
            log.warning("peer %s: %d packets %s", peer, packets, text)

    def _fresh(self, outcomes: Outcomes, now: float) -> Iterator[tuple[str, int, str, str]]:
        """(peer, packets since the last line, outcome, the words for it) of what is to be told."""
        for peer, counts in outcomes.items():
            for outcome, total in counts.items():
                packets = total - self._told[peer, outcome]
                if packets > 0 and now >= self._due.get((peer, outcome), now) and (text := words(outcome)):
                    yield peer, packets, outcome, text


def words(outcome: str) -> str:
    """What happened to packets and what to do; empty if it is nothing to tell."""
    kind, _, detail = outcome.partition(":")
    if kind == "duplicate_issuer":
        return f"of it {DUPLICATE}"
    if kind == "unstamped":
        return f"left for it without a scent ({detail}): {UNSTAMPED[detail]}" if detail in UNSTAMPED else ""
    if kind == "absent":
        return "" if detail == "pass" else f"of it without a scent were refused ({detail}): {ABSENT}"
    if kind in REJECTED:
        done = "let in although they are wrong" if detail == "pass" else f"refused ({detail})"
        return f"of it {done}: {kind}: {REJECTED[kind]}"
    return ""
