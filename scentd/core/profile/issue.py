"""The signing half of the profiler: a Statement to an Outgoing for each peer. Pure.

The body is signed once per epoch for all peers. Only if nodes are affected, each peer gets a body of its own, because a
node has another pseudonym for each peer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scentd.model import Outgoing, Statement
from scentd.wire import bloom, keys, layout, profile, tag

TAKEOVER_INTERVALS = 2
MAX_EARLY = 2.0  # seconds by which an alarm's epoch may be ahead of the clock, so that it need not wait for its second
TAKEOVER_MORE = 15  # seconds: NATS' key-value store stands still for 4 to 9 when its leader dies; the rest is delivery


class IssuedPair:
    """One peer of an issuer, with the keys that the pair derives, computed once or once per period."""

    def __init__(
        self, network: str, peer: str, identity: keys.Identity, public: keys.Public, secret: bytes | None = None
    ) -> None:
        """`network` and `peer` are configured names, `public` is the peer's key."""
        self.network = network
        self.peer = peer
        self.identity = identity
        self.public = public
        self.secret = keys.pair_secret(identity, public) if secret is None else secret
        self.pseudonym_key = keys.pseudonym_key(self.secret, identity.public, public)
        self._period = -1
        self._keys: keys.PairKeys | None = None

    def keys_at(self, epoch: int) -> keys.PairKeys:
        period = keys.period_of(epoch)
        if period != self._period or self._keys is None:
            self._period = period
            self._keys = keys.direction_keys(self.secret, self.identity.public, self.public, period)
        return self._keys


class Issuer:
    """Issues one network's profiles to its peers."""

    def __init__(self, identity: keys.Identity, peers: Sequence[IssuedPair], slots: Mapping[str, int]) -> None:
        """`slots` maps metric names to the levels' slots, standard and private ones."""
        self._identity = identity
        self._verifier = identity.public.verifier()
        self._peers = peers
        self._slots = slots
        self._by_peer = {p.peer: p for p in peers}
        self.key_ids = {p.peer: identity.public.key_id + p.public.key_id for p in peers}  # by which it signs and seals

    def issue(self, statement: Statement, epoch: int) -> list[Outgoing]:
        """An Outgoing for each peer in this epoch."""
        signed: dict[frozenset[str], bytes] = {}
        result = []
        for peer in self._peers:
            items = statement.items.union(profile.event_items(peer.pseudonym_key, statement.affected))
            if items not in signed:
                signed[items] = profile.sign(self._identity.signer, self._body(statement, items, epoch))
            result.append(self._seal(peer, statement, signed[items], epoch))
        return result

    def _body(self, statement: Statement, items: frozenset[str], epoch: int) -> bytes:
        levels = {self._slots[metric]: value for metric, value in statement.levels.items() if metric in self._slots}
        return profile.encode_body(
            self._identity.public.key_id,
            epoch,
            statement.interval,
            statement.overall,
            levels,
            bloom.make(items, epoch),
            statement.lag,
        )

    def _seal(self, peer: IssuedPair, statement: Statement, signed: bytes, epoch: int) -> Outgoing:
        pair_keys, key_id = peer.keys_at(epoch), self._identity.public.key_id
        fragments = profile.fragments(profile.seal(pair_keys, signed))
        heads = (tag.head(0, 0, key_id, epoch, i, fragment) for i, fragment in enumerate(fragments))
        glance = tag.glance(statement.overall or 0.0, statement.threat)
        return Outgoing(
            network=peer.network,
            peer=peer.peer,
            epoch=epoch,
            key_id=key_id,
            tag_key=pair_keys.tag,
            glances=bytes(glance ^ tag.glance_mask(pair_keys.glance, head) for head in heads),
            fragments=fragments,
            expires=epoch + lifetime(statement.interval),
        )

    def verify(self, outgoing: Outgoing) -> bool:
        """Whether a sealed profile opens and its signature is right. The profiler asks before it publishes one."""
        peer = self._by_peer.get(outgoing.peer)
        if peer is None:
            return False
        opened = profile.open_sealed(
            b"".join(outgoing.fragments),
            peer.keys_at(outgoing.epoch),
            self._verifier,
            self._identity.public.key_id,
            outgoing.epoch,
        )
        return isinstance(opened, profile.Body)


def lifetime(interval: int) -> int:
    """Seconds for which a profile may be sent if there is no newer one.

    Stampers go on while a standby takes a profiler's place. A receiver takes nothing that is over 60 s old, so there is
    an end; a profile lives for its interval in any case.
    """
    wanted = layout.LIFETIME_INTERVALS * interval + layout.LIFETIME_MORE
    return min(wanted, max(layout.LIFETIME_MAX, interval))


def outlives_takeover(interval: int) -> bool:
    """Whether a profile may be sent until a standby has taken the place of a profiler that died, and has issued."""
    return lifetime(interval) >= TAKEOVER_INTERVALS * interval + TAKEOVER_MORE


class NextEpoch(NamedTuple):
    """`epoch` is None: the last profile goes on. `voided`: the highest epoch so far was of a wrong clock."""

    epoch: int | None
    voided: bool = False


def next_epoch(now: float, issued: int, max_future: float, urgent: bool) -> NextEpoch:
    """The epoch to issue at `now`: the current second, but above `issued`, the highest epoch issued so far.

    Where that is ahead of the clock by no more than receivers take (`max_future` seconds), the last profile goes on
    until the clock has caught up; only what is urgent may be the next one. Where it is ahead by more, the clock was
    wrong then: nobody takes its epochs, and a second use of one does no harm (wire/README.md, section 6.2).
    """
    if issued > now + max_future:
        return NextEpoch(int(now), voided=True)
    if issued > now and not (urgent and issued + 1 <= now + max_future):
        return NextEpoch(None)
    return NextEpoch(max(int(now), issued + 1))


def early_wait(now: float, issued: int, max_future: float) -> float:
    """Seconds until an alarm may have an epoch whose second has not begun: the one above `issued`.

    A receiver's clock may be behind ours, so such an epoch is at most MAX_EARLY ahead, whatever receivers take.
    """
    return max(0.0, issued + 1 - min(MAX_EARLY, max_future) - now)


def metric_slots(private: Mapping[str, int]) -> dict[str, int]:
    """Names to slots: the standard metrics and a configuration's own."""
    return {**{name: slot for slot, name in layout.METRICS.items()}, **private}
