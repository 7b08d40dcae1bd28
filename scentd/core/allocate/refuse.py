"""Takes out of firings the senders at which no action may aim: protected, or released by hand. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_network

from scentd.config.schema import kind_of
from scentd.core.allocate.actions import action_of
from scentd.core.allocate.actions.action import make_decision
from scentd.core.allocate.actions.quarantine import prefix_of, sender_text, time_text
from scentd.errors import HostError
from scentd.model import Decision, Firing, Sender
from scentd.prefix import Prefix, within

TOLD_AGAIN = 600.0  # seconds after which a refusal that stands is told once more
RELEASES_MAX = 1024
TOLD_MAX = 1024  # senders that are remembered of one refusal


@dataclass(slots=True)
class Told:
    """The senders of one policy and peer that were refused for one reason, and told."""

    at: float  # when the first of them was told
    senders: set[Sender] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class HandRelease:
    """An operator has released a peer's senders of a policy's quarantine, which does not come back for a time."""

    policy: str
    peer: str
    prefix: Prefix | None  # the senders within it; None: all of the peer
    until: float  # Unix time

    def covers(self, policy: str, peer: str, sender: Sender) -> bool:
        mine = (policy, peer) == (self.policy, self.peer)
        return mine and (self.prefix is None or within(prefix_of(sender), self.prefix))


class Refuser:
    """Knows what is protected and what was released by hand, which a reload does not change.

    What is refused is a decision: one for each firing and reason, and once for a sender.
    """

    def __init__(self, protected: Iterable[Prefix]) -> None:
        self._protected = tuple(protected)
        self._releases: list[HandRelease] = []
        self._told: dict[tuple[str, str, str], Told] = {}

    def reload(self, protected: Iterable[Prefix]) -> None:
        """Take over other protected prefixes."""
        self._protected = tuple(protected)
        self._told.clear()

    def release(self, releases: Iterable[HandRelease]) -> None:
        """Refuse these for their time. One that is there already gets the new time. Raises HostError for too many."""
        new = {(r.policy, r.peer, r.prefix): r for r in releases}
        both = {(r.policy, r.peer, r.prefix): r for r in self._releases} | new
        if len(both) > RELEASES_MAX:
            raise HostError(
                f"{RELEASES_MAX} releases hold already; wait for the end of one: `scentd status` lists them"
            )
        self._releases = list(both.values())

    def releases(self, now: float) -> list[HandRelease]:
        """Those whose time is not over."""
        self._releases = [r for r in self._releases if r.until > now]
        return list(self._releases)

    def sift(self, firings: Iterable[Firing]) -> tuple[list[Firing], list[Decision]]:
        """The firings without the senders that are refused, and what is to be said of those."""
        left: list[Firing] = []
        decisions: list[Decision] = []
        for firing in firings:
            refused: dict[str, list[Sender]] = {}
            for sender in firing.targets:
                if why := self._why_not(firing, sender):
                    refused.setdefault(why, []).append(sender)
            gone = {sender for senders in refused.values() for sender in senders}
            targets = tuple(s for s in firing.targets if s not in gone)
            if targets or not gone or not action_of(firing.policy.do).needs_targets:
                left.append(replace(firing, targets=targets) if gone else firing)
            decisions += [d for why, senders in refused.items() for d in self._tell(firing, why, senders)]
        return left, decisions

    def protects(self, sender: Sender) -> str:
        """Why the sender is not to be cut off: a protected prefix has addresses of it. Empty: nothing protects it."""
        prefix = prefix_of(sender)
        over = (p for p in self._protected if within(prefix, p) or within(p, prefix))
        return next((f"protected by {p}" for p in over), "")

    def _why_not(self, firing: Firing, sender: Sender) -> str:
        name, peer = firing.policy.name, firing.peer
        holds = (r.until for r in self._releases if r.until > firing.at and r.covers(name, peer, sender))
        until = max(holds, default=None)
        return self.protects(sender) or (f"released by hand until {time_text(until)}" if until is not None else "")

    def _tell(self, firing: Firing, why: str, senders: Sequence[Sender]) -> list[Decision]:
        """A policy that holds fires for each epoch: what was told is not told again, but for every ten minutes."""
        key = firing.policy.name, firing.peer, why
        told = self._told.get(key)
        if told is None or not 0 <= firing.at - told.at < TOLD_AGAIN or len(told.senders) > TOLD_MAX:
            told = self._told[key] = Told(firing.at)
        new = [s for s in senders if s not in told.senders]
        told.senders.update(new)
        return [make_decision(firing, kind_of(firing.policy.do), some_text(new), "free", f"refused: {why}")] * bool(new)


def some_text(senders: Sequence[Sender]) -> str:
    """The first one, and how many more."""
    more = f" and {len(senders) - 1} more" if len(senders) > 1 else ""
    return sender_text(senders[0]) + more if senders else ""


@dataclass(frozen=True, slots=True)
class ReleaseChoice:
    """The quarantines that an operator means: of a peer, or of the senders within a prefix."""

    peer: str = ""
    prefix: Prefix | None = None

    def has(self, sender: Sender, peer: str) -> bool:
        return peer == self.peer if self.prefix is None else within(prefix_of(sender), self.prefix)


def selection(text: str, peers: Iterable[str]) -> ReleaseChoice:
    """What a peer's name, an address or a prefix means. Raises HostError."""
    if text in peers:
        return ReleaseChoice(peer=text)
    try:
        return ReleaseChoice(prefix=ip_network(text))
    except ValueError:
        raise HostError(
            f"{text!r}: no peer of that name, and no address or prefix; write acme or 10.0.0.0/24"
        ) from None
