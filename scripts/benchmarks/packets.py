"""The packets under test, built by hand: UDP, small or filling the MTU once it is stamped."""

from __future__ import annotations

import socket

from benchmarks.blast import flows
from benchmarks.lab import MTU, PORT
from scentd.wire import ip, layout

SIZES = ("small", "full")
SMALL = 32  # bytes of UDP payload
HEADERS = {4: 20 + 8, 6: 40 + 8}
GROWTH = {4: layout.IPV4_OPTION_LEN, 6: layout.IPV6_HEADER_LEN}


def payload(family: int, size: str) -> int:
    """Bytes of UDP payload."""
    return SMALL if size == "small" else MTU - HEADERS[family] - GROWTH[family]


def bare(family: int, size: str) -> list[bytes]:
    """One packet of each of the generator's flows, without a scent."""
    build = ipv4 if family == 4 else ipv6
    return [build(*flow, bytes(payload(family, size))) for flow in flows(family)]


def ipv4(source: str, destination: str, port: int, data: bytes) -> bytes:
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    length = (28 + len(data)).to_bytes(2, "big")
    header = bytearray(b"\x45\0" + length + b"\0\0\x40\0\x40\x11\0\0" + addresses)
    header[10:12] = ip.checksum(header).to_bytes(2, "big")
    return bytes(header) + udp(addresses, port, data)


def ipv6(source: str, destination: str, port: int, data: bytes) -> bytes:
    addresses = b"".join(socket.inet_pton(socket.AF_INET6, a) for a in (source, destination))
    datagram = udp(addresses, port, data)
    return b"\x60\0\0\0" + len(datagram).to_bytes(2, "big") + b"\x11\x40" + addresses + datagram


def udp(addresses: bytes, port: int, data: bytes) -> bytes:
    """With its checksum (RFC 768) over the pseudo header."""
    length = (8 + len(data)).to_bytes(2, "big")
    head = port.to_bytes(2, "big") + PORT.to_bytes(2, "big") + length
    total = addresses + b"\0\x11" + length + head + b"\0\0" + data + b"\0" * (len(data) % 2)
    return head + (ip.checksum(total) or 0xFFFF).to_bytes(2, "big") + data
