"""Messages between two hosts of a fleet, sealed end to end: what lies between can delay and drop them. Pure.

    message = version (1 byte), kind (1), sender, receiver, salt (24), ciphertext; a name is its length (1) and itself
    key, nonce = HKDF-SHA256 (RFC 5869) of the hosts' X25519 secret, info = label, kind, both keys, salt
    ciphertext = ChaCha20-Poly1305 (RFC 8439), additional data = all before it

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
    DESIRED = 4  # what an allocator wants a host to give, to that host
    PROVIDED = 5  # what a host gives and was told to, to an allocator


class Ends(NamedTuple):
    """The two hosts of a message, by name and key, and the secret that they share."""

    sender: str
    sender_key: keys.Public
    receiver: str
    receiver_key: keys.Public
    secret: bytes


class Head(NamedTuple):
    """What a message says of itself; nothing of it is verified."""

    kind: int
    sender: str
    receiver: str
    end: int  # where the salt begins


def seal(kind: Kind, ends: Ends, salt: bytes, plain: bytes) -> bytes:
    """`salt`: SALT_LEN random bytes."""
    names = [name.encode() for name in (ends.sender, ends.receiver)]
    head = bytes((VERSION, kind)) + b"".join(bytes((len(name),)) + name for name in names) + salt
    key, nonce = message_key(kind, ends, salt)
    return head + ChaCha20Poly1305(key).encrypt(nonce, plain, head)


def head(message: bytes) -> Head | str:
    """The message's head, or the name of what is wrong with it."""
    if len(message) > MESSAGE_MAX:
        return "too_long"
    if len(message) < 2:
        return "garbage"
    if message[0] != VERSION:
        return "version"
    names, at = [], 2
    for _ in ("sender", "receiver"):
        length = message[at] if at < len(message) else 0
        if not 0 < length <= NAME_MAX:
            return "garbage"
        names.append(message[at + 1 : at + 1 + length])
        at += 1 + length
    if len(message) < at + SALT_LEN + TAG_LEN or not all(map(bytes.isascii, names)):
        return "garbage"
    return Head(message[1], names[0].decode(), names[1].decode(), at)


def unseal(head: Head, ends: Ends, message: bytes) -> bytes | None:
    """What the sender sealed for the receiver; None if he did not. `head` is the message's."""
    end = head.end + SALT_LEN
    key, nonce = message_key(head.kind, ends, message[head.end : end])
    try:
        return ChaCha20Poly1305(key).decrypt(nonce, message[end:], message[:end])
    except InvalidTag:
        return None


def message_key(kind: int, ends: Ends, salt: bytes) -> tuple[bytes, bytes]:
    info = LABEL + bytes((kind,)) + ends.sender_key.raw + ends.receiver_key.raw + salt
    okm = HKDFExpand(hashes.SHA256(), 44, info).derive(ends.secret)
    return okm[:32], okm[32:]
