"""Scents in a capture, for people: decoded, not verified (that needs the keys)."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import BinaryIO

from scapy.error import Scapy_Exception
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.utils import PcapReader

from scentd.errors import HostError
from scentd.model import SCHEMA
from scentd.wire import ip, layout


def scents(file: str | BinaryIO) -> Iterator[dict]:
    """A dict for each packet with a scent. Raises HostError if the file is no capture."""
    try:
        with PcapReader(file) as reader:  # type: ignore[arg-type]  # takes open files, too
            for packet in reader:
                for kind in (IP, IPv6):
                    if kind in packet:
                        scent = decode(bytes(packet.original)[len(packet) - len(packet[kind]) :], float(packet.time))
                        if scent is not None:
                            yield scent
                        break
    except (OSError, Scapy_Exception) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else f"not a capture: {error}"
        raise HostError(f"{file}: {why}; name a file of `tcpdump -w`") from None


def decode(packet: bytes, at: float) -> dict | None:
    """The fields of a packet's scent, or None if it has none."""
    parsed = ip.parse(packet)
    if parsed.malformed or not parsed.scent_at:
        return None
    scent = packet[parsed.scent_at : parsed.scent_at + layout.LEN]
    _, version_flags, glance, key_id, epoch, index_count, fragment, tag = layout.SCENT.unpack(scent)
    return {
        "schema": SCHEMA,
        "at": at,
        "family": f"ipv{parsed.version}",
        "source": address(parsed.source),
        "destination": address(parsed.destination),
        "protocol": parsed.protocol,
        "version": version_flags >> 4,
        "flags": version_flags & 15,
        "glance": f"{glance:02x}",
        "key_id": key_id.hex(),
        "epoch": epoch,
        "fragment": f"{index_count >> 4}/{index_count & 15}",
        "data": fragment.hex(),
        "tag": tag.hex(),
    }


def address(packed: bytes) -> str:
    return str(ip_address(packed))
