"""The Bloom filter of characteristics (README.md section 6).

256 bits, 5 hashes. The hash is MurmurHash3 x64-128 with the epoch as seed, so that an item that is a false positive in
one epoch is not one in the next. Double hashing after Kirsch and Mitzenmacher, "Less Hashing, Same Performance" (2006).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import mmh3
from bitarray import bitarray

from scentd.wire import layout

BITS = layout.BLOOM_LEN * 8


def positions(item: str, epoch: int) -> list[int]:
    """The item's bits; bit 0 is the highest bit of the first byte."""
    first, second = mmh3.hash64(item.encode(), seed=epoch, x64arch=True, signed=False)
    second |= 1  # an odd step: the five positions differ, because 256 is a power of two
    return [(first + i * second) % BITS for i in range(layout.BLOOM_HASHES)]


def make(items: Iterable[str], epoch: int) -> bytes:
    bits = bitarray(BITS, endian="big")
    bits.setall(False)
    for item in items:
        bits[positions(item, epoch)] = True
    return bits.tobytes()


def contains(bloom: bytes, epoch: int, item: str) -> bool:
    """Whether the item may be in the filter. For an item that is in the filter, never False."""
    bits = mask(item, epoch)
    return int.from_bytes(bloom, "big") & bits == bits


@functools.lru_cache(16384)
def mask(item: str, epoch: int) -> int:
    """The item's bits as a number. Remembered: networks whose profiles are of one epoch are asked the same items."""
    return sum(1 << BITS - 1 - position for position in positions(item, epoch))


def to_bits(bloom: bytes) -> bitarray:
    """A filter as a bitarray, for many calls of `has_item`."""
    bits = bitarray(endian="big")
    bits.frombytes(bloom)
    return bits


def has_item(bits: bitarray, epoch: int, item: str) -> bool:
    return all(bits[p] for p in positions(item, epoch))
