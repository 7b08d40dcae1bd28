"""The profile: body, signature, sealing, fragments (README.md section 6).

A sender encodes, signs, seals and cuts: `encode_body`, `sign`, `seal`, `fragments`. A receiver joins the fragments and
calls `open_sealed`, which opens, verifies and decodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from siphashc import siphash

from scentd.wire import layout
from scentd.wire.keys import PairKeys

LABEL_SIGNATURE = b"scentd/1 profile"
_R_LEN = 32  # of an Ed25519 signature: R, then S
_R_END = layout.BODY_LEN + _R_LEN


@dataclass(frozen=True, slots=True)
class Body:
    """A decoded statement. Levels by slot, unknown ones left out; `overall` is None if it is unknown."""

    key_id: bytes
    epoch: int
    interval: int
    overall: float | None
    levels: dict[int, float]
    bloom: bytes
    lag: int = 0  # seconds by which the network's stampers may lag behind one another


def encode_body(
    key_id: bytes,
    epoch: int,
    interval: int,
    overall: float | None,
    levels: Mapping[int, float],
    bloom: bytes,
    lag: int = 0,
) -> bytes:
    """The 66 bytes of a body. Levels are 0.0 .. 1.0 by slot (layout.METRIC_*), `lag` is 0 .. LAG_MAX seconds."""
    slots = bytearray(b"\xff" * layout.LEVELS)
    for slot, value in levels.items():
        slots[slot] = encode_level(value)
    whole = layout.LEVEL_UNKNOWN if overall is None else encode_level(overall)
    return layout.BODY.pack(layout.VERSION, key_id, epoch, interval, whole, bytes(slots), lag, bloom)


def encode_level(value: float) -> int:
    return int(value * layout.LEVEL_MAX + 0.5)


def sign(signer: Ed25519PrivateKey, body: bytes) -> bytes:
    """The 130 bytes of a profile: body and Ed25519 signature (RFC 8032) over label and body."""
    return body + signer.sign(LABEL_SIGNATURE + body)


def seal(keys: PairKeys, profile: bytes) -> bytes:
    """The 130 bytes that travel: R of the signature, hidden, then body and S.

    R is the nonce for body and S, and 12 bytes of what that gives are the nonce for R. R is a function of secret and
    message (RFC 8032 section 5.1.6), so two different profiles never share a key stream, even if a cloned machine or a
    clock that was set back makes both for one epoch. In clear, R would show who gets a different profile.
    """
    body, first, second = profile[: layout.BODY_LEN], profile[layout.BODY_LEN : _R_END], profile[_R_END:]
    rest = chacha(keys.seal, first[:12], body + second)
    return chacha(keys.nonce, rest[:12], first) + rest


def unseal(keys: PairKeys, sealed: bytes) -> bytes:
    """The profile that seal() was given; bytes of no meaning if the keys are others."""
    hidden, rest = sealed[:_R_LEN], sealed[_R_LEN:]
    first = chacha(keys.nonce, rest[:12], hidden)
    plain = chacha(keys.seal, first[:12], rest)
    return plain[: layout.BODY_LEN] + first + plain[layout.BODY_LEN :]


def chacha(key: bytes, nonce: bytes, data: bytes) -> bytes:
    """ChaCha20 (RFC 8439) with a nonce of 12 bytes, from block 0 on."""
    return Cipher(ChaCha20(key, bytes(4) + nonce), mode=None).encryptor().update(data)


def fragments(sealed: bytes) -> tuple[bytes, ...]:
    """The ten fragments, of 13 bytes each."""
    size = layout.FRAGMENT_LEN
    return tuple(sealed[i : i + size] for i in range(0, layout.PROFILE_LEN, size))


def open_sealed(sealed: bytes, keys: PairKeys, verifier: Ed25519PublicKey, key_id: bytes, epoch: int) -> Body | int:
    """The Body, or one of layout.PROFILE_ERROR_*. Nothing is decoded before the signature is verified."""
    if len(sealed) != layout.PROFILE_LEN:
        return layout.PROFILE_ERROR_LENGTH
    return open_signed(unseal(keys, sealed), verifier, key_id, epoch)


def open_signed(profile: bytes, verifier: Ed25519PublicKey, key_id: bytes, epoch: int) -> Body | int:
    """The Body of a profile in clear, or one of layout.PROFILE_ERROR_*; the same checks."""
    if len(profile) != layout.PROFILE_LEN:
        return layout.PROFILE_ERROR_LENGTH
    body, signature = profile[: layout.BODY_LEN], profile[layout.BODY_LEN :]
    try:
        verifier.verify(signature, LABEL_SIGNATURE + body)
    except InvalidSignature:
        return layout.PROFILE_ERROR_SIGNATURE
    return decode_body(body, key_id, epoch)


def stated(profile: bytes) -> tuple[bytes, int]:
    """Key id and epoch as a profile in clear states them; nothing of it is verified."""
    _, key_id, epoch, *_ = layout.BODY.unpack(profile[: layout.BODY_LEN])
    return key_id, epoch


def decode_body(body: bytes, key_id: bytes, epoch: int) -> Body | int:
    """The Body of 66 signed bytes, or one of layout.PROFILE_ERROR_*."""
    version, own_id, own_epoch, interval, overall, slots, lag, bloom = layout.BODY.unpack(body)
    if version != layout.VERSION:
        return layout.PROFILE_ERROR_VERSION
    if own_id != key_id or own_epoch != epoch:
        return layout.PROFILE_ERROR_IDENTITY
    if not layout.INTERVAL_MIN <= interval <= layout.INTERVAL_MAX or lag > layout.LAG_MAX:
        return layout.PROFILE_ERROR_LEVEL
    if any(layout.LEVEL_MAX < s < layout.LEVEL_UNKNOWN for s in (overall, *slots)):
        return layout.PROFILE_ERROR_LEVEL
    levels = {i: s / layout.LEVEL_MAX for i, s in enumerate(slots) if s != layout.LEVEL_UNKNOWN}
    whole = None if overall == layout.LEVEL_UNKNOWN else overall / layout.LEVEL_MAX
    return Body(own_id, own_epoch, interval, whole, levels, bloom, lag)


def pseudonym(key: bytes, address: IPv4Address | IPv6Address) -> str:
    """A node's name for one peer: 16 hex digits that only the pair can compute."""
    return f"{siphash(key, address.packed):016x}"


def event_items(key: bytes, affected: Iterable[IPv4Address | IPv6Address]) -> list[str]:
    """Two items for each affected node. A receiver asks for both, so that chance rarely marks an innocent node."""
    names = [pseudonym(key, a) for a in affected]
    return [item for name in names for item in (f"node={name};event=intrusion", f"event=intrusion;node={name}")]
