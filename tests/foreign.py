"""A second implementation of scentd/wire/README.md that shares no line with scentd.

What the vectors say must follow from that text. Only X25519, Ed25519 and ChaCha20
come from a library.
"""

import base64
import hashlib
import hmac
import struct

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

U64 = 2**64 - 1


def rotl(x, n):
    return (x << n | x >> (64 - n)) & U64


def siphash24(key, data):
    """Aumasson and Bernstein, "SipHash: a fast short-input PRF", section 2."""
    k0, k1 = struct.unpack("<QQ", key)
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def rounds(n):
        for _ in range(n):
            v[0] = (v[0] + v[1]) & U64
            v[1] = rotl(v[1], 13) ^ v[0]
            v[0] = rotl(v[0], 32)
            v[2] = (v[2] + v[3]) & U64
            v[3] = rotl(v[3], 16) ^ v[2]
            v[0] = (v[0] + v[3]) & U64
            v[3] = rotl(v[3], 21) ^ v[0]
            v[2] = (v[2] + v[1]) & U64
            v[1] = rotl(v[1], 17) ^ v[2]
            v[2] = rotl(v[2], 32)

    padded = data + bytes(7 - len(data) % 8) + bytes((len(data) & 255,))
    for (word,) in struct.iter_unpack("<Q", padded):
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def murmur3_x64_128(data, seed):
    """Appleby's MurmurHash3_x64_128: (h1, h2)."""
    c1, c2 = 0x87C37B91114253D5, 0x4CF5AD432745937F

    def mix1(k):
        return rotl(k * c1 & U64, 31) * c2 & U64

    def mix2(k):
        return rotl(k * c2 & U64, 33) * c1 & U64

    def final(k):
        k = (k ^ k >> 33) * 0xFF51AFD7ED558CCD & U64
        k = (k ^ k >> 33) * 0xC4CEB9FE1A85EC53 & U64
        return k ^ k >> 33

    h1 = h2 = seed
    whole = len(data) // 16 * 16
    for k1, k2 in struct.iter_unpack("<QQ", data[:whole]):
        h1 = ((rotl(h1 ^ mix1(k1), 27) + h2) * 5 + 0x52DCE729) & U64
        h2 = ((rotl(h2 ^ mix2(k2), 31) + h1) * 5 + 0x38495AB5) & U64
    tail = data[whole:]
    h1 ^= mix1(int.from_bytes(tail[:8], "little"))
    h2 ^= mix2(int.from_bytes(tail[8:], "little"))
    h1, h2 = h1 ^ len(data), h2 ^ len(data)
    h1 = (h1 + h2) & U64
    h2 = (h2 + h1) & U64
    h1, h2 = final(h1), final(h2)
    h1 = (h1 + h2) & U64
    return h1, (h2 + h1) & U64


def expand(prk, info, length):
    out = block = b""
    while len(out) < length:
        block = hmac.digest(prk, block + info + bytes((len(out) // 32 + 1,)), "sha256")
        out += block
    return out[:length]


class Identity:
    def __init__(self, secret):
        prk = hmac.digest(bytes(32), secret, "sha256")
        self.signer = Ed25519PrivateKey.from_private_bytes(expand(prk, b"scentd/1 ed25519", 32))
        self.exchange = X25519PrivateKey.from_private_bytes(expand(prk, b"scentd/1 x25519", 32))
        self.public = self.signer.public_key().public_bytes_raw() + self.exchange.public_key().public_bytes_raw()
        self.key_id = hashlib.sha256(b"scentd/1 key-id" + self.public).digest()[:4]
        self.text = base64.b64encode(self.public).decode()


def pair_secret(mine, their_public):
    shared = mine.exchange.exchange(X25519PublicKey.from_public_bytes(their_public[32:]))
    return hmac.digest(b"scentd/1 pair", shared, "sha256")


def direction_keys(pair, sender, receiver, period):
    out = expand(pair, b"scentd/1 keys by R" + sender + receiver + struct.pack(">I", period), 96)
    return out[:16], out[16:32], out[32:64], out[64:]


def pseudonym(pair, sender, receiver, address):
    return f"{siphash24(expand(pair, b'scentd/1 pseudonym' + sender + receiver, 16), address):016x}"


def node_items(name):
    """Section 6.4: an affected node is in the filter twice."""
    return [f"node={name};event=intrusion", f"event=intrusion;node={name}"]


def bloom(items, epoch):
    bits = 0
    for item in items:
        for position in bloom_positions(item, epoch):
            bits |= 1 << 255 - position
    return bits.to_bytes(32, "big")


def bloom_positions(item, epoch):
    h1, h2 = murmur3_x64_128(item.encode("utf-8"), epoch)
    return [(h1 + i * (h2 | 1)) % 256 for i in range(5)]


def chacha(key, nonce, data):
    return Cipher(ChaCha20(key, bytes(4) + nonce), mode=None).encryptor().update(data)


def seal(seal_key, nonce_key, data):
    """Section 6.2, of a signed body."""
    r = data[66:98]
    rest = chacha(seal_key, r[:12], data[:66] + data[98:])
    return chacha(nonce_key, rest[0:12], r) + rest


def unseal(seal_key, nonce_key, data):
    r = chacha(nonce_key, data[32:44], data[:32])
    rest = chacha(seal_key, r[:12], data[32:])
    return rest[:66] + r + rest[66:]


def body(key_id, epoch, interval, overall, levels, items, lag=0):
    def level(x):
        return 255 if x is None else int(x * 250 + 0.5)

    slots = bytes(level(levels.get(i)) for i in range(22))
    head = b"\x01" + key_id + struct.pack(">IBB", epoch, interval, level(overall))
    return head + slots + bytes((lag,)) + bloom(items, epoch)


def fresh(epoch, now, marks, grace=2):
    """Section 7, of an authentic epoch in time. `marks`: highest, second of first sight, epoch before, lag.

    Returns the verdict, whether the scent is used, and the marks after it.
    """
    highest, since, before, lag = marks
    if epoch > highest:
        return "accepted", True, (epoch, int(now), before if before and since == int(now) else highest, lag)
    if epoch == highest:
        return "accepted", True, marks
    if 0 < before <= epoch and since <= now <= since + grace:
        return "accepted", False, marks
    return ("accepted" if epoch >= highest - lag else "replayed-epoch"), False, marks


def signed_by(public, data):
    Ed25519PublicKey.from_public_bytes(public[:32]).verify(data[66:], b"scentd/1 profile" + data[:66])


def glance_mask(key, scent):
    """Section 4.3."""
    return siphash24(key, scent[8:26]) & 255


def tag(key, scent, version, protocol, ports, source, destination):
    flags = scent[2] & 15
    covered = scent[:26]
    if flags & 2:
        covered += bytes(6)
    else:
        covered += bytes((protocol, 0)) + (ports if flags & 1 else bytes(4)) + source + destination
    assert len(covered) == (32 if flags & 2 else 40 if version == 4 else 64)
    return struct.pack("<Q", siphash24(key, covered))


def internet_checksum(header):
    total = sum(struct.unpack(f">{len(header) // 2}H", header))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def carry4(packet, scent):
    """Section 5.1: the option right behind the fixed header."""
    end = (packet[0] & 15) * 4
    header = bytearray(packet[:20] + b"\x9e\x24" + scent + packet[20:end])
    header[0] += 9
    header[2:4] = struct.pack(">H", len(packet) + 36)
    header[10:12] = b"\0\0"
    header[10:12] = struct.pack(">H", internet_checksum(bytes(header)))
    return bytes(header) + packet[end:]


def carry6(packet, scent):
    """Section 5.2: a header of its own behind the fixed header, or behind Hop-by-Hop."""
    made = bytearray(packet)
    before, at = (40, 40 + (packet[41] + 1) * 8) if packet[6] == 0 else (6, 40)
    ours = bytes((packet[before],)) + b"\x04\x1e\x22" + scent + b"\x01\x00"
    made[before] = 60
    made[4:6] = struct.pack(">H", len(packet) - 40 + 40)
    return bytes(made[:at]) + ours + packet[at:]
