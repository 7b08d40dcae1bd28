"""Packets that nearly are what the vectors are: for comparing two parsers of the same text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from ipaddress import ip_address
from random import Random

import wire_setup
from packet_vectors import A4, A6, B4, B6, C4, C6, F6, N4

from scentd.wire import ip, layout, tag

ADDRESSES = {
    4: [ip_address(a).packed for a in (A4, B4, C4, N4, "10.5.0.1", "10.9.0.1", "192.0.2.255", "224.0.0.1")],
    16: [ip_address(a).packed for a in (A6, B6, C6, F6, "2001:db8:9::1", "fe80::1", "ff02::1", "2001:db8:f::")],
}
PROTOCOLS = (0, 1, 6, 17, 33, 43, 44, 47, 50, 51, 58, 59, 60, 132, 136, 255)
FLAGS = (0, 1, 2, 3, 4, 5, 6, 8, 9, 15)
PIECES = (b"\x00\x00\x00\x00", b"\x00\x00\x00\x01", b"\x00\x08\x00\x01", b"\x00\x08\x00\x00", b"\x00\x06\x00\x02")

Change = Callable[[Random, bytearray, Sequence[bytes]], None]


def changed(seed: int, count: int, bases: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """(the base, the base changed one to three times); two thirds with right lengths, a third with right tags."""
    rng = Random(seed)  # noqa: S311 - the same packets each time
    for _ in range(count):
        base = rng.choice(bases)
        made = bytearray(base)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            rng.choice(CHANGES)(rng, made, bases)
        if rng.random() < 0.66:
            mend_length(made, base[0] >> 4)
        if rng.random() < 0.5:
            made = bytearray(tagged(bytes(made)))
        if rng.random() < 0.5:
            mend_checksum(made)
        yield base, bytes(made)


# -- one change ----------------------------------------------------------


def flip(rng: Random, packet: bytearray, _: Sequence[bytes]) -> None:
    at = rng.randrange(min(len(packet), 120)) if packet else 0
    packet[at : at + 1] = bytes(byte ^ 1 << rng.randrange(8) for byte in packet[at : at + 1])


def noise(rng: Random, packet: bytearray, _: Sequence[bytes]) -> None:
    """In the options, most of the time."""
    at = rng.randrange(18, 100)
    size = len(packet[at : at + rng.randrange(1, 6)])
    packet[at : at + size] = rng.randbytes(size)


def cut(rng: Random, packet: bytearray, _: Sequence[bytes]) -> None:
    del packet[rng.randrange(len(packet) + 1) :]


def lengthen(rng: Random, packet: bytearray, _: Sequence[bytes]) -> None:
    packet += rng.randbytes(rng.choice((1, 2, 8, 40, 700, 1400)))
    del packet[1600:]


def length(rng: Random, packet: bytearray, _: Sequence[bytes]) -> None:
    at = 2 if packet[:1] < b"\x60" else 4
    more = rng.choice((-40, -36, -8, -1, 1, 8, 36, 40, rng.randrange(65536)))
    packet[at : at + 2] = ((int.from_bytes(packet[at : at + 2], "big") + more) % 65536).to_bytes(2, "big")


def first_byte(rng: Random, packet: bytearray, _: Sequence[bytes]) -> None:
    packet[:1] = bytes((rng.choice((0x44, 0x45, 0x46, 0x4D, 0x4E, 0x4F, 0x55, 0x60, 0x6F, 0x5E)),))


def protocol(rng: Random, packet: bytearray, _: Sequence[bytes]) -> None:
    """Of either family; in IPv6 of any of the first headers."""
    at = rng.choice((9,) if packet[:1] < b"\x60" else (6, 6, 40, 48, 80))
    if at < len(packet):
        packet[at] = rng.choice(PROTOCOLS)


def fragmented(rng: Random, packet: bytearray, _: Sequence[bytes]) -> None:
    if packet[:1] < b"\x60":
        packet[6:8] = rng.choice((0, 0x2000, 0x4000, 0x6000, 0x8000, 1, 0x2001, 0x4001, 0x1FFF)).to_bytes(2, "big")


def scent_field(rng: Random, packet: bytearray, _: Sequence[bytes]) -> None:
    """Flags, index and count, or an epoch near the right one; in IPv4 and in IPv6."""
    at = 22 if packet[:1] < b"\x60" else 44
    kind = rng.randrange(3)
    if kind == 0:
        packet[at + 2 : at + 3] = bytes((rng.choice((0x10, 0x10, 0x10, 0x20, 0)) | rng.choice(FLAGS),))
    elif kind == 1:
        packet[at + 12 : at + 13] = bytes((rng.choice((0x0A, 0x9A, 0xAA, 0x09, 0x5A, 0xFA)),))
    else:
        epoch = wire_setup.EPOCH + rng.choice(
            (-7200, -3605, -61, -59, -58, -6, 0, 5, 11, 12, 3600, -wire_setup.EPOCH, 10**9)
        )
        packet[at + 8 : at + 12] = epoch.to_bytes(4, "big")


def header(rng: Random, packet: bytearray, _: Sequence[bytes]) -> None:
    """An extension header more, in IPv6: behind the fixed header or where it is behind ours."""
    at, before = rng.choice(((40, 6), (80, 40)))
    if packet[:1] < b"\x60" or len(packet) < at:
        return
    kind = rng.choice((0, 43, 44, 44, 44, 60))
    content = rng.choice(PIECES) + bytes(3) if kind == ip.FRAGMENT else b"\0\1\4" + bytes(4)
    packet[at:at] = packet[before : before + 1] + content
    packet[before] = kind


def splice(rng: Random, packet: bytearray, bases: Sequence[bytes]) -> None:
    at = rng.choice((20, 40, 56, 60, 80, rng.randrange(100)))
    packet[at:] = rng.choice(bases)[at:]


def other_address(rng: Random, packet: bytearray, _: Sequence[bytes]) -> None:
    """As source or destination."""
    if len(packet) >= 40:
        start, size = (12, 4) if packet[:1] < b"\x60" else (8, 16)
        start += rng.choice((0, size))
        packet[start : start + size] = rng.choice(ADDRESSES[size])


def neighbourly(rng: Random, packet: bytearray, _: Sequence[bytes]) -> None:
    """What looks like neighbour discovery or multicast listening, or nearly."""
    if len(packet) > 80 and packet[0] >> 4 == 6:
        packet[rng.choice((6, 40))] = 58
        packet[7] = rng.choice((255, 255, 1, 64))
        packet[rng.choice((40, 80))] = rng.choice((1, 2, 3, 128, 130, 132, 133, 135, 137, 138, 143))


def router_error(rng: Random, packet: bytearray, _: Sequence[bytes]) -> None:
    """ICMP "fragmentation needed", with a scent or without."""
    if packet[:1] < b"\x60" and len(packet) > 60:
        packet[9] = 1
        at = (packet[0] & 15) * 4
        packet[at : at + 2] = bytes((3, rng.choice((3, 4, 4, 5))))


CHANGES: tuple[Change, ...] = (
    flip, flip, flip, noise, cut, lengthen, length, first_byte, protocol, fragmented, scent_field, scent_field, header,
    splice, other_address, other_address, neighbourly, router_error,
)  # fmt: skip


# -- making right --------------------------------------------------------


def mend_length(packet: bytearray, version: int) -> None:
    if version == 4 and len(packet) >= 20:
        packet[2:4] = len(packet).to_bytes(2, "big")
    elif version == 6 and len(packet) >= 40:
        packet[4:6] = (len(packet) - 40).to_bytes(2, "big")


def mend_checksum(packet: bytearray) -> None:
    end = (packet[0] & 15) * 4 if packet else 0
    if packet[:1] < b"\x50" and 20 <= end <= len(packet):
        packet[10:12] = b"\0\0"
        packet[10:12] = ip.checksum(packet[:end]).to_bytes(2, "big")


def tagged(packet: bytes) -> bytes:
    """With the tag that its bytes and addresses want, if it has a scent; header checksum included."""
    found = ip.parse(packet)
    if found.malformed or not found.scent_at:
        return packet
    head = packet[found.scent_at : found.scent_at + layout.TAGGED_LEN]
    key = tag_key(
        wire_setup.owner(found.source), wire_setup.owner(found.destination), int.from_bytes(head[8:12], "big")
    )
    if not found.ports:
        found.ports = packet[found.transport_at :][:4].ljust(4, b"\0")
    made = bytearray(packet)
    at = found.scent_at + layout.TAGGED_LEN
    made[at : at + layout.TAG_LEN] = tag.compute(key, head, found)
    mend_checksum(made)
    return bytes(made)


@cache
def tag_key(sender: str | None, receiver: str | None, epoch: int) -> bytes:
    if sender is None or receiver is None or sender == receiver:
        return bytes(16)
    return wire_setup.keys_of(sender, receiver, epoch).tag
