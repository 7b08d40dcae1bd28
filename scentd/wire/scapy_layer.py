"""Scapy layers for the scent: `IPOption_Scent` (IPv4) and `IPv6Option_Scent`.

Tests, captures and `scentd decode` use it. Importing scapy takes over a second, so the packet path must not import this
file. Both code points are experimental and open to everybody (RFC 4727): scapy's own layers keep an option of our type
that does not have our magic and length.

    IP(options=[IPOption_Scent(key_id=..., epoch=..., data=..., tag=...)])
    IPv6() / IPv6ExtHdrDestOpt(options=[IPv6Option_Scent(...)])
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scapy.fields import (
    BitEnumField,
    BitField,
    ByteEnumField,
    ByteField,
    FlagsField,
    IntField,
    XByteField,
    XShortField,
    XStrFixedLenField,
)
from scapy.layers.inet import IPOption
from scapy.layers.inet6 import HBHOptUnknown
from scapy.packet import Packet

from scentd.wire import layout

_MAGIC = layout.MAGIC.to_bytes(2, "big")
_NAMES = {layout.IPV4_OPTION_TYPE & 31: "scent"}


def _scent_fields() -> list[Any]:
    """The 34 bytes of bpf/scent_wire.h; index and count are half a byte each."""
    return [
        XShortField("magic", layout.MAGIC),
        BitField("version", layout.VERSION, 4),
        FlagsField("flags", 0, 4, ["ports", "sender", "beacon", "reserved"]),
        XByteField("glance", 0),
        XStrFixedLenField("key_id", b"\0" * 4, 4),
        IntField("epoch", 0),
        BitField("index", 0, 4),
        BitField("count", layout.FRAGMENTS, 4),
        XStrFixedLenField("data", b"\0" * layout.FRAGMENT_LEN, layout.FRAGMENT_LEN),  # Packet.fragment is a method
        XStrFixedLenField("tag", b"\0" * layout.TAG_LEN, layout.TAG_LEN),
    ]


class IPOption_Scent(IPOption):
    name = "IP Option Scent"
    fields_desc = [
        BitField("copy_flag", 1, 1),
        BitEnumField("optclass", 0, 2, {0: "control", 2: "debug"}),
        BitEnumField("option", layout.IPV4_OPTION_TYPE & 31, 5, _NAMES),
        ByteField("length", layout.IPV4_OPTION_LEN),
        *_scent_fields(),
    ]

    @classmethod
    def register_variant(cls) -> None:
        """Do nothing: IPOption would register the type alone, and `_guard` looks at the magic, too."""


class IPv6Option_Scent(Packet):
    name = "Scent Option"
    fields_desc = [
        ByteEnumField("otype", layout.IPV6_OPTION_TYPE, {layout.IPV6_OPTION_TYPE: "Scent"}),
        ByteField("optlen", layout.LEN),
        *_scent_fields(),
    ]

    def alignment_delta(self, _curpos: int) -> int:
        """Bytes of padding that scapy has to put before the option: none, because the option comes first."""
        return 0

    def extract_padding(self, data: bytes) -> tuple[bytes, bytes]:
        return b"", data


def _guard(base: Any, start: bytes, layer: type[Packet]) -> None:
    """Let `base` dissect options that begin with `start` (type, length) and our magic as `layer`."""
    other: Callable[..., type[Packet]] = base.dispatch_hook

    def dispatch_hook(_cls: type[Packet], data: bytes | None = None, *args: Any, **kwargs: Any) -> type[Packet]:
        if data and bytes(data[:4]) == start + _MAGIC and len(data) >= len(start) + layout.LEN:
            return layer
        return other(data, *args, **kwargs)

    base.dispatch_hook = classmethod(dispatch_hook)


_guard(IPOption, bytes((layout.IPV4_OPTION_TYPE, layout.IPV4_OPTION_LEN)), IPOption_Scent)
_guard(HBHOptUnknown, bytes((layout.IPV6_OPTION_TYPE, layout.LEN)), IPv6Option_Scent)
