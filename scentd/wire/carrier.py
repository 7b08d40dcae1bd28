"""Carriers: each inserts the 34 bytes of a scent into packets, and removes them; its overhead is their growth.

One class a carrier, one line in CARRIERS. The overhead belongs to the carrier, and so to the pair that uses it, not to
the IP version. These functions serve every form of packet. The fast paths of the stamper and the verifier write the
common forms by hand (core/packet, bpf/).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from scentd.wire import layout
from scentd.wire.ip import DESTINATION, Parsed, checksum

_IPV4_HEAD = bytes((layout.IPV4_OPTION_TYPE, layout.IPV4_OPTION_LEN))
_IPV6_LENGTH = layout.IPV6_HEADER_LEN // 8 - 1
_IPV6_HEAD = bytes((layout.IPV6_OPTION_TYPE, layout.LEN))
_PADDING = b"\x01\x00"  # PadN without content


class Carrier(ABC):
    """One way to carry a scent. `overhead`: the growth of a packet, bytes; `version`: the packet's IP version."""

    name: ClassVar[str]
    version: ClassVar[int]
    overhead: ClassVar[int]

    def place(self, parsed: Parsed) -> int | None:
        """The offset at which `insert` puts a scent; None: the packet's headers leave no room."""
        return parsed.insert_at if parsed.has_room else None

    @abstractmethod
    def insert(self, packet: bytes, parsed: Parsed, scent: bytes) -> bytes:
        """The packet with the scent in its place. The caller has checked `place` and the packet's size."""

    @abstractmethod
    def remove(self, packet: bytes, parsed: Parsed) -> bytes:
        """The packet as it was before stamping."""

    @abstractmethod
    def strip(self, packet: bytes, parsed: Parsed) -> bytes:
        """The packet without its scent, in the form that a queue at PREROUTING may pass on."""


class Ipv4Option(Carrier):
    """Option 158 right behind the fixed header (RFC 791 section 3.1; README.md section 5.1)."""

    name = "ipv4-option"
    version = 4
    overhead = layout.IPV4_OPTION_LEN

    def insert(self, packet: bytes, parsed: Parsed, scent: bytes) -> bytes:
        header = bytearray(packet[:20] + ipv4_option(scent) + packet[20 : parsed.transport_at])
        header[0] += self.overhead // 4
        header[2:4] = (len(packet) + self.overhead).to_bytes(2, "big")
        return _with_checksum(header) + packet[parsed.transport_at :]

    def remove(self, packet: bytes, parsed: Parsed) -> bytes:
        option = parsed.scent_at - len(_IPV4_HEAD)
        header = bytearray(packet[:option] + packet[option + self.overhead : parsed.transport_at])
        header[0] -= self.overhead // 4
        header[2:4] = (len(packet) - self.overhead).to_bytes(2, "big")
        return _with_checksum(header) + packet[parsed.transport_at :]

    def strip(self, packet: bytes, parsed: Parsed) -> bytes:
        """Replace the option by NOPs (type 1).

        The kernel fixed the transport offset of a packet at PREROUTING before the queue sees it, so an IPv4 header
        must not change its length there.
        """
        option = parsed.scent_at - len(_IPV4_HEAD)
        header = bytearray(packet[: parsed.transport_at])
        header[option : option + self.overhead] = b"\x01" * self.overhead
        return _with_checksum(header) + packet[parsed.transport_at :]


class Ipv6Header(Carrier):
    """A Destination Options header of its own behind the fixed header, or behind Hop-by-Hop (README.md section 5.2)."""

    name = "ipv6-header"
    version = 6
    overhead = layout.IPV6_HEADER_LEN

    def insert(self, packet: bytes, parsed: Parsed, scent: bytes) -> bytes:
        at = parsed.insert_at
        before = bytearray(packet[:at])
        pointer = 6 if at == 40 else 40  # offset of the "next header" field that has to name our header
        inner, before[pointer] = before[pointer], DESTINATION
        before[4:6] = (len(packet) - 40 + self.overhead).to_bytes(2, "big")
        return bytes(before) + ipv6_header(inner, scent) + packet[at:]

    def remove(self, packet: bytes, parsed: Parsed) -> bytes:
        start = parsed.scent_at - layout.IPV6_HEADER_SCENT_AT
        before = bytearray(packet[:start])
        before[6 if start == 40 else 40] = packet[start]
        before[4:6] = (len(packet) - 40 - self.overhead).to_bytes(2, "big")
        return bytes(before) + packet[start + self.overhead :]

    def strip(self, packet: bytes, parsed: Parsed) -> bytes:
        return self.remove(packet, parsed)


CARRIERS: dict[str, Carrier] = {
    "ipv4-option": Ipv4Option(),
    "ipv6-header": Ipv6Header(),
}
NATIVE = {4: "ipv4-option", 6: "ipv6-header"}  # by IP version: the carrier that uses the packet's own headers


def carrier_of(parsed: Parsed) -> Carrier:
    """The carrier of a packet's scent."""
    return CARRIERS[NATIVE[parsed.version]]


def ipv4_option(scent: bytes) -> bytes:
    return _IPV4_HEAD + scent


def ipv6_header(next_header: int, scent: bytes) -> bytes:
    return bytes((next_header, _IPV6_LENGTH)) + _IPV6_HEAD + scent + _PADDING


def _with_checksum(header: bytearray) -> bytes:
    header[10:12] = b"\0\0"
    header[10:12] = checksum(header).to_bytes(2, "big")
    return bytes(header)
