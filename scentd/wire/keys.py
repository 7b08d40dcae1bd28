"""Identities and the keys of a pair: derivation only, no files (README.md section 3).

secret (32 bytes) -> Ed25519 and X25519 private keys -> public key (base64 of both)
X25519(own, peer's) -> pair secret -> tag, glance, seal and nonce keys per direction and period
"""

from __future__ import annotations

import base64
import binascii
import hmac
from dataclasses import dataclass, field
from hashlib import sha256

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from scentd.wire import layout

SECRET_LEN = 32
PUBLIC_LEN = 64
LABEL_ED25519 = b"scentd/1 ed25519"
LABEL_X25519 = b"scentd/1 x25519"
LABEL_KEY_ID = b"scentd/1 key-id"
LABEL_PAIR = b"scentd/1 pair"
LABEL_KEYS = b"scentd/1 keys by R"
LABEL_PSEUDONYM = b"scentd/1 pseudonym"


@dataclass(frozen=True, slots=True)
class Public:
    """A public key: 32 bytes of Ed25519 and 32 of X25519."""

    raw: bytes
    key_id: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key_id", sha256(LABEL_KEY_ID + self.raw).digest()[:4])

    def __str__(self) -> str:
        return base64.b64encode(self.raw).decode()

    def verifier(self) -> Ed25519PublicKey:
        return Ed25519PublicKey.from_public_bytes(self.raw[:32])


@dataclass(frozen=True, slots=True, repr=False)  # no repr: secrets stay out of logs and tracebacks
class Identity:
    """The private and public keys of one 32-byte secret."""

    signer: Ed25519PrivateKey
    exchange: X25519PrivateKey
    public: Public


@dataclass(frozen=True, slots=True, repr=False)
class PairKeys:
    """The keys of one direction of a pair in one period."""

    tag: bytes  # 16, SipHash-2-4
    glance: bytes  # 16, SipHash-2-4
    seal: bytes  # 32, ChaCha20
    nonce: bytes  # 32, ChaCha20: hides the nonce of the seal


def identity(secret: bytes) -> Identity:
    """The identity of a 32-byte secret. Raises ValueError for another length."""
    if len(secret) != SECRET_LEN:
        raise ValueError(f"a secret has {SECRET_LEN} bytes, not {len(secret)}")
    signer = Ed25519PrivateKey.from_private_bytes(hkdf(secret, b"", LABEL_ED25519, 32))
    exchange = X25519PrivateKey.from_private_bytes(hkdf(secret, b"", LABEL_X25519, 32))
    raw = signer.public_key().public_bytes_raw() + exchange.public_key().public_bytes_raw()
    return Identity(signer, exchange, Public(raw))


def parse_public(text: str) -> Public:
    """A public key from its base64 form. Raises ValueError."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not base64; take the output of `scentd pubkey`") from None
    if len(raw) != PUBLIC_LEN:
        raise ValueError(f"{len(raw)} bytes, not {PUBLIC_LEN}; take the output of `scentd pubkey`")
    return Public(raw)


def pair_secret(own: Identity, peer: Public) -> bytes:
    """The secret of a pair: 32 bytes that only the two identities can compute.

    Raises ValueError if the public key is a point of low order.
    """
    try:
        shared = own.exchange.exchange(X25519PublicKey.from_public_bytes(peer.raw[32:]))
    except ValueError:
        raise ValueError("a point of low order, which is no key") from None
    return hkdf_extract(shared, LABEL_PAIR)


def direction_keys(pair: bytes, sender: Public, receiver: Public, period: int) -> PairKeys:
    """The keys of packets from `sender` to `receiver` in `period` (epoch // layout.PERIOD)."""
    info = LABEL_KEYS + sender.raw + receiver.raw + period.to_bytes(4, "big")
    okm = HKDFExpand(hashes.SHA256(), 96, info).derive(pair)
    return PairKeys(okm[:16], okm[16:32], okm[32:64], okm[64:])


def pseudonym_key(pair: bytes, sender: Public, receiver: Public) -> bytes:
    """The key, 16 bytes, of pseudonyms of `sender`'s nodes towards `receiver`; the same in every period."""
    return HKDFExpand(hashes.SHA256(), 16, LABEL_PSEUDONYM + sender.raw + receiver.raw).derive(pair)


def period_of(epoch: int) -> int:
    return epoch // layout.PERIOD


def hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """HKDF-SHA256, RFC 5869; an empty salt is 32 zero bytes."""
    return HKDF(hashes.SHA256(), length, salt or None, info).derive(secret)


def hkdf_extract(secret: bytes, salt: bytes) -> bytes:
    """RFC 5869 section 2.2: HMAC-SHA256 of the secret under the salt."""
    return hmac.digest(salt, secret, "sha256")
