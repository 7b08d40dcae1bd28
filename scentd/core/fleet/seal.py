"""Messages between two hosts of a fleet, sealed end to end: what lies between can delay and drop them. Pure.

    message = version (1 byte), kind (1), length of the sender's name (1), the name, salt (24), ciphertext
    key, nonce = HKDF-SHA256 (RFC 5869) of the hosts' X25519 secret, info = label, kind, both keys, salt
    ciphertext = ChaCha20-Poly1305 (RFC 8439), additional data = all before it, and the receiver's name

The salt is random and makes a key for each message, so that no counter has to outlive a restart to keep nonces apart.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from scentd.wire import keys

VERSION = 1
SALT_LEN = 24
TAG_LEN = 16
NAME_MAX = 63
MESSAGE_MAX = 1_048_576  # bytes: what a NATS server takes by default
LABEL = b"scentd/1 bus"


class Kind(IntEnum):
    SAMPLES = 1  # a collector's readings, to a profiler
    OUTGOING = 2  # a profiler's epochs, to a stamper
    VIEWS = 3  # what a verifier has verified, to an allocator


class Ends(NamedTuple):
    """The two hosts of a message, by name and key, and the secret that they share."""

    sender: str
    sender_key: keys.Public
    receiver: str
    receiver_key: keys.Public
    secret: bytes


class Head(NamedTuple):
    kind: int
    sender: str
    end: int  # where the salt begins


def seal(kind: Kind, ends: Ends, salt: bytes, plain: bytes) -> bytes:
    """`salt`: SALT_LEN random bytes."""
    name = ends.sender.encode()
    head = bytes((VERSION, kind, len(name))) + name + salt
    key, nonce = message_key(kind, ends, salt)
    return head + ChaCha20Poly1305(key).encrypt(nonce, plain, head + ends.receiver.encode())


def head(message: bytes) -> Head | str:
    """Who says that he sent it; or the name of what is wrong with it."""
    if len(message) > MESSAGE_MAX:
        return "too_long"
    if len(message) < 3:
        return "garbage"
    if message[0] != VERSION:
        return "version"
    end = 3 + message[2]
    if not 0 < message[2] <= NAME_MAX or len(message) < end + SALT_LEN + TAG_LEN:
        return "garbage"
    try:
        return Head(message[1], message[3:end].decode(), end)
    except UnicodeDecodeError:
        return "garbage"


def unseal(kind: Kind, ends: Ends, message: bytes) -> bytes | None:
    """What the sender sealed; None if it was another, or for another. `message` has a right head."""
    end = 3 + message[2] + SALT_LEN
    key, nonce = message_key(kind, ends, message[end - SALT_LEN : end])
    try:
        return ChaCha20Poly1305(key).decrypt(nonce, message[end:], message[:end] + ends.receiver.encode())
    except InvalidTag:
        return None


def message_key(kind: Kind, ends: Ends, salt: bytes) -> tuple[bytes, bytes]:
    info = LABEL + bytes((kind,)) + ends.sender_key.raw + ends.receiver_key.raw + salt
    okm = HKDFExpand(hashes.SHA256(), 44, info).derive(ends.secret)
    return okm[:32], okm[32:]
