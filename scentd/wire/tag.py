"""The scent of a packet: building it, its tag, its glance (README.md sections 4 and 5)."""

from __future__ import annotations

from siphashc import siphash

from scentd.wire import layout
from scentd.wire.ip import Parsed

_NO_PORTS = b"\0\0\0\0"


def compute(key: bytes, head: bytes, parsed: Parsed) -> bytes:
    """The tag of a scent on a packet: SipHash-2-4, 8 bytes, little-endian as its authors print it.

    `head` is the scent's first 26 bytes. Its flags say which fields of the packet the tag covers.
    """
    flags = head[2] & 15
    if flags & layout.FLAG_SENDER:
        data = layout.TAG_INPUT_SENDER.pack(head, b"")
    else:
        ports = parsed.ports if flags & layout.FLAG_PORTS else _NO_PORTS
        form = layout.TAG_INPUT_IPV4 if parsed.version == 4 else layout.TAG_INPUT_IPV6
        data = form.pack(head, parsed.protocol, 0, ports, parsed.source, parsed.destination)
    return siphash(key, data).to_bytes(8, "little")


def head(flags: int, glance: int, key_id: bytes, epoch: int, index: int, fragment: bytes) -> bytes:
    """The 26 bytes of a scent that the tag covers."""
    return layout.SCENT.pack(
        layout.MAGIC, layout.VERSION << 4 | flags, glance, key_id, epoch, index << 4 | layout.FRAGMENTS, fragment, b""
    )[: layout.TAGGED_LEN]


def glance_mask(key: bytes, scent: bytes) -> int:
    """The key stream byte of a glance: the lowest byte of SipHash-2-4 over epoch, index and fragment beside it.

    `scent` has at least its first 26 bytes. Another profile of the same epoch has other fragments, and another mask.
    """
    return siphash(key, scent[layout.SCENT_EPOCH_AT : layout.TAGGED_LEN]) & 0xFF


def glance(load: float, threat: float) -> int:
    """Two levels of 0.0 .. 1.0 as one byte, rounded half up, unmasked."""
    return _nibble(load) << 4 | _nibble(threat)


def glance_levels(byte: int) -> tuple[float, float]:
    """(load, threat) of an unmasked glance."""
    return (byte >> 4) / layout.GLANCE_MAX, (byte & 15) / layout.GLANCE_MAX


def _nibble(value: float) -> int:
    return int(value * layout.GLANCE_MAX + 0.5)
