"""What verifiers say of a peer, and the one View that an allocator makes of it. Pure.

The profile comes as its network signed it, and the allocator verifies it again. The rest is the verifier's own word:
the glance, and which sources it has seen that the profile marks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import NamedTuple

import msgspec
from msgspec import Struct

from scentd.core.allocate.view import PeerView
from scentd.core.fleet.order import MAX_AGE, MAX_FUTURE, Serial
from scentd.core.leaps import is_leapt
from scentd.model import View
from scentd.prefix import Address
from scentd.wire import keys, layout, profile

AFFECTED_MAX = 1024  # of one report
QUARANTINED_MAX = 1024  # senders that one verifier tells of


class Report(Struct, frozen=True, array_like=True):
    """One verifier's knowledge of one peer."""

    peer: str
    signed: bytes  # the newest profile, in clear: body and signature
    load: float  # the newest glance
    threat: float
    glance_epoch: int  # of that glance: it may be ahead of the profile
    affected: tuple[bytes, ...]  # packed addresses


class HostReports(Struct, frozen=True, array_like=True):
    serial: Serial
    at: float  # Unix time
    reports: tuple[Report, ...]
    quarantined: tuple[str, ...] | None = None  # senders whom the verifier itself has cut off; None: as it was


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(HostReports).decode


def report(view: View, affected_max: int = AFFECTED_MAX) -> Report:
    affected = sorted(address.packed for address in view.affected)[:affected_max]
    glance = view.glance_load, view.glance_threat, view.glance_epoch
    return Report(view.peer, view.signed, *glance, tuple(affected))


def is_sound(said: Report) -> bool:
    """Whether its values can be what they are called. NaN is none of them."""
    shares = 0.0 <= said.load <= 1.0 and 0.0 <= said.threat <= 1.0
    addresses = len(said.affected) <= AFFECTED_MAX and all(len(a) in (4, 16) for a in said.affected)
    return shares and addresses and len(said.signed) == layout.PROFILE_LEN


class Affected(NamedTuple):
    """Whom a verifier has seen that the profile of an epoch marks."""

    epoch: int
    nodes: frozenset[Address]


class PooledView:
    """One peer, as all verifiers together see it. Times are the allocator's own: no verifier's clock counts."""

    def __init__(self, view: PeerView, publics: Sequence[keys.Public]) -> None:
        """`publics`: the peer's keys."""
        self._view = view
        self.set_publics(publics)
        self._affected: dict[str, Affected] = {}  # by verifier

    def set_publics(self, publics: Sequence[keys.Public]) -> None:
        """Take what one of these keys has signed, from now on."""
        self._publics = {public.key_id: public for public in publics}

    def take(self, verifier: str, said: Report, now: float) -> str:
        """Take a verifier's report; the name of what is wrong with it, "" for nothing."""
        if not is_sound(said):
            return "garbage"
        key_id, epoch = profile.stated(said.signed)
        if epoch < now - MAX_AGE:
            return "stale"
        if max(epoch, said.glance_epoch) > now + MAX_FUTURE:
            return "future"
        signer = self._publics.get(key_id)
        body = profile.open_signed(said.signed, signer.verifier(), key_id, epoch) if signer is not None else None
        if not isinstance(body, profile.Body):
            return "wrong_profile"
        if is_leapt(self._view.highest_epoch, now, MAX_FUTURE):
            self._view.forget_profiles()
            self._affected.clear()
        self._view.take_profile(body, b"", now, said.signed)
        self._view.take_glance(max(epoch, said.glance_epoch), said.load, said.threat, now)
        if epoch >= self._affected.get(verifier, Affected(0, frozenset())).epoch:
            self._affected[verifier] = Affected(epoch, frozenset(map(ip_address, said.affected)))
        return ""

    def view(self, now: float) -> View | None:
        """None before the first profile. Of affected nodes those count that were seen with the newest one."""
        view = self._view.view(now)
        if view is None:
            return None
        current = (said.nodes for said in self._affected.values() if said.epoch == view.profile.epoch)
        return replace(view, affected=frozenset().union(*current))
