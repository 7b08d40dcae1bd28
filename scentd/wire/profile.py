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

LABEL_SIGNATURE = b"scentd/1 profile"


@dataclass(frozen=True, slots=True)
class Body:
    """A decoded statement. Levels by slot, unknown ones left out; `overall` is None if it is unknown."""

    key_id: bytes
    epoch: int
    interval: int
    overall: float | None
    levels: dict[int, float]
    bloom: bytes


def encode_body(
    key_id: bytes, epoch: int, interval: int, overall: float | None, levels: Mapping[int, float], bloom: bytes
) -> bytes:
    """The 66 bytes of a body. Levels are 0.0 .. 1.0 by slot (layout.METRIC_*)."""
    slots = bytearray(b"\xff" * layout.LEVELS)
    for slot, value in levels.items():
        slots[slot] = encode_level(value)
    whole = layout.LEVEL_UNKNOWN if overall is None else encode_level(overall)
    return layout.BODY.pack(layout.VERSION, key_id, epoch, interval, whole, bytes(slots), 0, bloom)


def encode_level(value: float) -> int:
    return int(value * layout.LEVEL_MAX + 0.5)


def sign(signer: Ed25519PrivateKey, body: bytes) -> bytes:
    """The 130 bytes of a profile: body and Ed25519 signature (RFC 8032) over label and body."""
    return body + signer.sign(LABEL_SIGNATURE + body)


def seal(key: bytes, epoch: int, profile: bytes) -> bytes:
    """ChaCha20 (RFC 8439) with the epoch as nonce; sealing and opening are the same operation.

    A key stream must never serve two profiles: a pair uses an epoch only once, and its keys change each period.
    """
    nonce = b"\0\0\0\0" + b"\0" * 8 + epoch.to_bytes(4, "big")  # counter 0 (little-endian), 12-byte nonce
    return Cipher(ChaCha20(key, nonce), mode=None).encryptor().update(profile)


def fragments(sealed: bytes) -> tuple[bytes, ...]:
    """The ten fragments, of 13 bytes each."""
    size = layout.FRAGMENT_LEN
    return tuple(sealed[i : i + size] for i in range(0, layout.PROFILE_LEN, size))


def open_sealed(sealed: bytes, seal_key: bytes, verifier: Ed25519PublicKey, key_id: bytes, epoch: int) -> Body | int:
    """The Body, or one of layout.PROFILE_ERROR_*. Nothing is decoded before the signature is verified."""
    if len(sealed) != layout.PROFILE_LEN:
        return layout.PROFILE_ERROR_LENGTH
    profile = seal(seal_key, epoch, sealed)
    body, signature = profile[: layout.BODY_LEN], profile[layout.BODY_LEN :]
    try:
        verifier.verify(signature, LABEL_SIGNATURE + body)
    except InvalidSignature:
        return layout.PROFILE_ERROR_SIGNATURE
    return decode_body(body, key_id, epoch)


def decode_body(body: bytes, key_id: bytes, epoch: int) -> Body | int:
    """The Body of 66 signed bytes, or one of layout.PROFILE_ERROR_*."""
    version, own_id, own_epoch, interval, overall, slots, _, bloom = layout.BODY.unpack(body)
    if version != layout.VERSION:
        return layout.PROFILE_ERROR_VERSION
    if own_id != key_id or own_epoch != epoch:
        return layout.PROFILE_ERROR_IDENTITY
    if not layout.INTERVAL_MIN <= interval <= layout.INTERVAL_MAX:
        return layout.PROFILE_ERROR_LEVEL
    if any(layout.LEVEL_MAX < s < layout.LEVEL_UNKNOWN for s in (overall, *slots)):
        return layout.PROFILE_ERROR_LEVEL
    levels = {i: s / layout.LEVEL_MAX for i, s in enumerate(slots) if s != layout.LEVEL_UNKNOWN}
    whole = None if overall == layout.LEVEL_UNKNOWN else overall / layout.LEVEL_MAX
    return Body(own_id, own_epoch, interval, whole, levels, bloom)


def pseudonym(key: bytes, address: IPv4Address | IPv6Address) -> str:
    """A node's name for one peer: 16 hex digits that only the pair can compute."""
    return f"{siphash(key, address.packed):016x}"


def event_items(key: bytes, affected: Iterable[IPv4Address | IPv6Address]) -> list[str]:
    """Two items for each affected node. A receiver asks for both, so that chance rarely marks an innocent node."""
    names = [pseudonym(key, a) for a in affected]
    return [item for name in names for item in (f"node={name};event=intrusion", f"event=intrusion;node={name}")]
