"""Which slots of the epoch file a configuration needs: by configured names, which stay when keys change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from scentd.config.sections import Config
from scentd.core.pairs import Identities, PairName
from scentd.core.tables import EpochRow
from scentd.state.epochs import Epochs, slot_id
from scentd.wire import keys


def issued_slot(network: str) -> bytes:
    """The slot of the highest epoch that a network has issued."""
    return slot_id("issued", network.encode())


def seen_slot(network: str, peer: str) -> bytes:
    """The slot of the highest epoch that a network has seen of a peer."""
    return slot_id("seen", network.encode(), peer.encode())


def seen_slots(config: Config) -> dict[PairName, bytes]:
    return {(n.name, p.name): seen_slot(n.name, p.name) for n in config.network for p in config.peer}


def carry_over(epochs: Epochs, config: Config, identities: Mapping[str, Identities]) -> None:
    """Take the epochs over that earlier versions kept by keys; slots that have an epoch stay as they are."""
    entries = epochs.entries()

    def take(slot: bytes, olds: Iterable[bytes]) -> None:
        if not epochs.epoch(slot):
            epoch, since, *_ = max((entries[old] for old in olds if old in entries), default=EpochRow())
            epochs.raise_row(epochs.slot(slot), epoch, since)

    publics = {p.name: [keys.parse_public(text).raw for text in p.public_keys] for p in config.peer}
    for network in config.network:
        own = [identity.public.raw for identity in identities.get(network.name, ())]
        if own:
            take(issued_slot(network.name), (slot_id("issued", key) for key in own))
        for peer, theirs in publics.items():
            take(seen_slot(network.name, peer), (slot_id("seen", a, b) for a in own for b in theirs))
