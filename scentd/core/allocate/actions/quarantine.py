"""Quarantine: drops the packets of a peer's affected nodes, or of its whole network, for a time.

A resource is a prefix (an address as /32 or /128), whose packets are all dropped. Where others have addresses of the
prefix, too, it is a `PeerPrefix`: only packets with the peer's key are dropped, so that no neighbour is cut off; its
profiles are still heard. The desired value is a `QuarantineEntry`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Literal

import msgspec

from scentd.config.policy import Action, Policy
from scentd.config.units import Seconds
from scentd.core.allocate.actions.action import ActionKind, Peers, Resources, ResourceText, make_decision
from scentd.model import Decision, Firing, Oneshot, PeerPrefix, Sender, View
from scentd.prefix import Prefix, prefix_text, within

QUARANTINED_MAX = 65536  # prefixes at once; the actuator makes its sets of this size
# Of one peer: as many as a large network has nodes, so few that who names ever new ones leaves room for others.
OF_PEER_MAX = QUARANTINED_MAX // 16
LISTED_MAX = 16  # decisions about quarantines that go on, in one round


class QuarantineAction(Action, tag_field="kind", tag="quarantine"):
    """Drop all packets from the affected nodes or the whole network for a time (nftables set)."""

    target: Literal["node", "network"] = "node"
    timeout: Seconds = 60.0


@dataclass(frozen=True, slots=True)
class QuarantineEntry:
    """One quarantined prefix."""

    until: float
    timeout: float  # the policy's when it fired
    peer: str
    policy: str
    epoch: int


class QuarantineKind(ActionKind[QuarantineAction]):
    section = QuarantineAction
    level_triggered = True
    needs_targets = True

    def targets(self, do: QuarantineAction, view: View) -> tuple[Sender, ...]:
        prefixes = view.prefixes
        if do.target == "node":
            prefixes = tuple(ip_network(a) for a in sorted(view.affected, key=lambda a: (a.version, a)))
        return tuple(narrowed(prefix, view.peer, view.shared) for prefix in prefixes)

    def fold(self, do: QuarantineAction, resources: Resources, firing: Firing) -> tuple[list[Decision], list[Oneshot]]:
        """Quarantine the targets from now on for the policy's timeout. A longer quarantine of a target stays.

        Each new one is a decision; those that are refused are one. Of those that go on LISTED_MAX are, and one sums
        up the rest.
        """
        decisions: list[Decision] = []
        renewals: list[Decision] = []
        refusals: list[str] = []
        until = firing.at + do.timeout
        is_new = any(prefix not in resources for prefix in firing.targets)
        room = room_for(firing.peer, resources) if is_new else 0  # what goes on needs no room, and no count
        for prefix in firing.targets:
            target, old = sender_text(prefix), resources.get(prefix)
            before = f"quarantined until {time_text(old.until)}" if old else "free"
            if not isinstance(prefix, PeerPrefix) and prefix.prefixlen == 0:
                decisions.append(make_decision(firing, self.kind, target, before, "refused: this is every address"))
            elif old is None and room <= 0:
                refusals.append(target)
            elif old is None or until > old.until:
                resources[prefix] = QuarantineEntry(until, do.timeout, firing.peer, firing.policy.name, firing.epoch)
                after = f"quarantined until {time_text(until)}{how(prefix)}"
                made = make_decision(firing, self.kind, target, before, after)
                (decisions if old is None else renewals).append(made)
                room -= old is None
        if refusals:
            target = refusals[0] if len(refusals) == 1 else f"{len(refusals)} senders"
            decisions.append(make_decision(firing, self.kind, target, "free", refusal(resources)))
        if rest := renewals[LISTED_MAX:]:
            after = f"quarantined until {time_text(until)}"
            more = make_decision(firing, self.kind, f"{len(rest)} senders more", "quarantined", after)
            renewals[LISTED_MAX:] = [more]
        return decisions + renewals, []

    def release(self, resources: Resources, now: float) -> list[Decision]:
        """Release the prefixes whose time is over. A clock that was set back does not make a quarantine longer."""
        decisions = []
        for prefix, entry in list(resources.items()):
            if entry.until - now > entry.timeout:
                resources[prefix] = replace(entry, until=now + entry.timeout)
            elif entry.until <= now:
                del resources[prefix]
                decisions.append(
                    release_decision(prefix, entry, now, f"{entry.timeout:g} s since the policy last fired")
                )
        return decisions

    def reload(
        self,
        resources: Mapping[Sender, QuarantineEntry],
        policies: Sequence[Policy],
        peers: Peers,
        now: float,
    ) -> tuple[Resources, list[Decision]]:
        """Release the prefixes whose policy or peer is no longer configured, and those that are shared by now.

        If its policy still holds, it fires again, and for the peer alone.
        """
        names = {p.name for p in policies}
        kept = {
            p: entry
            for p, entry in resources.items()
            if entry.policy in names and entry.peer in peers
            if isinstance(p, PeerPrefix) or narrowed(p, entry.peer, peers[entry.peer]) == p
        }
        gone = [(p, entry) for p, entry in resources.items() if p not in kept]
        return kept, [
            release_decision(p, entry, now, "the policy or the peer was removed, or others share it")
            for p, entry in gone
        ]

    def dump(self, resources: Mapping[Sender, QuarantineEntry]) -> dict[str, bytes]:
        return {
            sender_text(sender): msgspec.msgpack.encode((str(prefix_of(sender)), isinstance(sender, PeerPrefix), entry))
            for sender, entry in resources.items()
        }

    def load(self, rows: Mapping[str, bytes]) -> Resources:
        resources: Resources = {}
        for row in rows.values():
            try:
                text, narrow, entry = msgspec.msgpack.decode(row, type=tuple[str, bool, QuarantineEntry])
                prefix = ip_network(text)
            except (msgspec.DecodeError, ValueError):
                continue
            resources[PeerPrefix(prefix, entry.peer) if narrow else prefix] = entry
        return resources

    def release_where(self, resources: Resources, why: Callable[[Sender, str], str], now: float) -> list[Decision]:
        decisions = []
        for prefix, entry in list(resources.items()):
            if reason := why(prefix, entry.peer):
                del resources[prefix]
                decisions.append(release_decision(prefix, entry, now, reason))
        return decisions

    def describe(self, resources: Mapping[Sender, QuarantineEntry]) -> list[ResourceText]:
        return [
            ResourceText(
                sender_text(p), entry.peer, f"quarantined until {time_text(entry.until)}{how(p)}", until=entry.until
            )
            for p, entry in resources.items()
        ]

    def barred_senders(self, resources: Mapping[Sender, QuarantineEntry]) -> dict[Sender, float]:
        return {p: entry.until for p, entry in resources.items()}


def room_for(peer: str, resources: Mapping[Sender, QuarantineEntry]) -> int:
    """How many more of this peer may be quarantined."""
    return min(QUARANTINED_MAX - len(resources), OF_PEER_MAX - sum(e.peer == peer for e in resources.values()))


def refusal(resources: Mapping[Sender, QuarantineEntry]) -> str:
    whose = "" if len(resources) >= QUARANTINED_MAX else " of this peer"
    return f"refused: {OF_PEER_MAX if whose else QUARANTINED_MAX}{whose} are quarantined already"


def release_decision(prefix: Sender, entry: QuarantineEntry, now: float, reason: str) -> Decision:
    before = f"quarantined until {time_text(entry.until)}"
    return Decision(now, entry.peer, entry.policy, entry.epoch, "release", sender_text(prefix), before, "free", reason)


def seconds_left(resources: Mapping[Sender, QuarantineEntry], now: float) -> dict[Prefix, float]:
    """Of the prefixes; packets of one peer alone are not for nftables."""
    return {
        p: entry.until - now for p, entry in resources.items() if not isinstance(p, PeerPrefix) and entry.until > now
    }


def narrowed(prefix: Prefix, peer: str, shared: Iterable[Prefix]) -> Sender:
    """The prefix; or the peer's packets from it, if others have addresses of it, too. `shared`: as in a View."""
    return PeerPrefix(prefix, peer) if any(within(prefix, s) or within(s, prefix) for s in shared) else prefix


def prefix_of(sender: Sender) -> Prefix:
    return sender.prefix if isinstance(sender, PeerPrefix) else sender


def sender_text(sender: Sender) -> str:
    text = prefix_text(prefix_of(sender))
    return f"{text} of {sender.peer}" if isinstance(sender, PeerPrefix) else text


def how(sender: Sender) -> str:
    return ", packets with its key alone: other peers share the address" if isinstance(sender, PeerPrefix) else ""


def time_text(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
