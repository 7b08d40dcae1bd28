"""Hypothesis settings and strategies for the tests of the pure core."""

import json
from pathlib import Path

import carriers
import wire_setup
from hypothesis import settings
from hypothesis import strategies as st

from scentd.wire import ip, layout

VECTORS = json.loads((Path(__file__).parent / "vectors" / "packets.json").read_text())
BEFORE = {v["name"]: bytes.fromhex(v["before"]) for v in VECTORS["stamped"]}
STAMPED = {v["name"]: bytes.fromhex(v["stamped"]) for v in VECTORS["stamped"]}
SMALL = {name: packet for name, packet in STAMPED.items() if len(packet) < 700}

quick = settings(deadline=None, derandomize=True, database=None, max_examples=150)

# Anything, and anything that begins like an IP packet with a right length field.
noise = st.binary(max_size=160)


def ip_like(data):
    """Bytes with a version and a length field that fits."""
    if len(data) < 20 or data[0] & 1:
        return data
    if data[0] & 2:
        return bytes((0x40 | 5 + data[1] % 11,)) + data[1:2] + len(data).to_bytes(2, "big") + data[4:]
    return b"\x60" + data[1:4] + max(len(data) - 40, 0).to_bytes(2, "big") + bytes((data[6] % 2 * 60,)) + data[7:]


@st.composite
def mutated(draw, packets):
    """One of the packets, some bytes changed, perhaps cut or continued, lengths and checksum often mended."""
    packet = bytearray(draw(st.sampled_from(packets)))
    for _ in range(draw(st.integers(0, 4))):
        # Mostly in the headers: the payload is nobody's business.
        at = draw(st.integers(0, min(len(packet), 100) - 1))
        packet[at] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        packet = packet[: draw(st.integers(0, len(packet)))] + draw(st.binary(max_size=8))
    made = bytes(packet)
    return mended(made) if draw(st.booleans()) else made


def mended(packet):
    """The packet with the length field and IPv4 header checksum that the kernel would insist on."""
    if len(packet) >= 40 and packet[0] >> 4 == 6:
        return packet[:4] + (len(packet) - 40).to_bytes(2, "big") + packet[6:]
    header = (packet[0] & 15) * 4 if packet else 0
    if not packet or packet[0] >> 4 != 4 or not 20 <= header <= len(packet):
        return packet
    made = bytearray(packet)
    made[2:4] = len(packet).to_bytes(2, "big")
    made[10:12] = b"\0\0"
    made[10:12] = ip.checksum(bytes(made[:header])).to_bytes(2, "big")
    return bytes(made)


def without_checksum(packet):
    return packet[:10] + b"\0\0" + packet[12:] if packet[0] >> 4 == 4 else packet


TCP4, TCP6 = STAMPED["tcp4"], STAMPED["tcp6"]


def verdict(outcome):
    return layout.VERDICT_ACCEPTED if isinstance(outcome, bytes) else outcome.verdict


def at_epoch(epoch, before=TCP4):
    return wire_setup.stamper(epoch, epoch).stamp(carriers.remove(before, ip.parse(before)))
