"""A profiler's epochs for one stamper: which go together, how they are signed, and what a stamper checks. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec
from cryptography.exceptions import InvalidSignature
from msgspec import Struct

from scentd.core.pairs import Pairs
from scentd.model import IssuedEpoch, Outgoing
from scentd.wire import keys, layout, profile

BATCH_MAX = 512_000  # bytes, of the networks that go together
OUTGOING_SIZE = 450  # bytes of one Outgoing with its keys and names, at most
LABEL = b"scentd/1 batch"
SIGNATURE_LEN, TAG_KEY_LEN, SEAL_LEN = 64, 16, 32


class Sent(Struct, frozen=True, array_like=True):
    """One Outgoing, and the keys by which its profile opens: a stamper checks it, and so can read it."""

    outgoing: Outgoing
    seal: bytes
    nonce: bytes


class SentEpoch(Struct, frozen=True, array_like=True):
    network: str
    epoch: int
    interval: float
    alarm: bool
    outgoing: tuple[Sent, ...]


class Batch(Struct, frozen=True, array_like=True):
    """Epochs of networks that always go together. `groups`: into how many the stamper's networks are divided."""

    profiler: str  # the configured name
    instance: str  # of those with that name, which
    term: int  # of its lease
    stamper: str
    group: int
    groups: int
    at: float  # Unix time
    epochs: tuple[SentEpoch, ...]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Batch).decode


def grouped(sizes: Mapping[str, int]) -> list[list[str]]:
    """The networks in groups of at most BATCH_MAX bytes, by name. `sizes`: how many peers each has."""
    groups: list[list[str]] = []
    room = 0
    for network in sorted(sizes):
        size = OUTGOING_SIZE * sizes[network]
        if not groups or size > room:
            groups.append([])
            room = BATCH_MAX
        groups[-1].append(network)
        room -= size
    return groups


def sent_epoch(issued: IssuedEpoch, pairs: Pairs) -> SentEpoch:
    """An epoch with the keys that a stamper needs; without peers that have just left the configuration."""
    found = []
    for out in issued.outgoing:
        pair = pairs.by_name.get((out.network, out.peer))
        if pair is not None and pair.issued is not None:
            own = pair.issued.keys_at(out.epoch)
            found.append(Sent(out, own.seal, own.nonce))
    return SentEpoch(issued.network, issued.epoch, issued.interval, issued.alarm, tuple(found))


def sign(identity: keys.Identity, batch: Batch) -> bytes:
    """Signature (Ed25519 over label and batch), then the batch."""
    encoded = _encode(batch)
    return identity.signer.sign(LABEL + encoded) + encoded


def verified(signed: bytes, signer: keys.Public) -> Batch | str:
    """The batch, or the name of what is wrong with it."""
    try:
        signer.verifier().verify(signed[:SIGNATURE_LEN], LABEL + signed[SIGNATURE_LEN:])
        return _decode(signed[SIGNATURE_LEN:])
    except InvalidSignature:
        return "wrong_signature"
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return "garbage"


def checked(epoch: SentEpoch, publics: Sequence[keys.Public]) -> IssuedEpoch | None:
    """The epoch, if each of its profiles opens and one of the network's keys has signed it; None otherwise."""
    good = [outgoing for sent in epoch.outgoing if (outgoing := opened(sent, epoch, publics)) is not None]
    if len(good) < len(epoch.outgoing):
        return None
    return IssuedEpoch(epoch.network, epoch.epoch, epoch.interval, epoch.alarm, tuple(good))


def opened(sent: Sent, epoch: SentEpoch, publics: Iterable[keys.Public]) -> Outgoing | None:
    """What a stamper may use; None if it is not what the network has signed for this epoch."""
    out = sent.outgoing
    signer = next((p for p in publics if p.key_id == out.key_id), None)
    if signer is None or (out.network, out.epoch) != (epoch.network, epoch.epoch):
        return None
    sizes = len(out.tag_key), len(sent.seal), len(sent.nonce), len(out.glances), *map(len, out.fragments)
    if sizes != (TAG_KEY_LEN, SEAL_LEN, SEAL_LEN, layout.FRAGMENTS, *(layout.FRAGMENT_LEN,) * layout.FRAGMENTS):
        return None
    pair_keys = keys.PairKeys(out.tag_key, b"", sent.seal, sent.nonce)
    body = profile.open_sealed(b"".join(out.fragments), pair_keys, signer.verifier(), out.key_id, out.epoch)
    return out if isinstance(body, profile.Body) else None
