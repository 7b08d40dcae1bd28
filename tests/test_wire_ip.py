import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.utils import checksum as scapy_checksum
from wire_strategies import BEFORE, STAMPED, ip_like, mutated, noise, quick

from scentd.wire import ip, layout

SCENT = bytes(range(34))
FIELDS = ("scent_at", "insert_at", "transport_at")


@quick
@given(noise.map(ip_like))
@example(b"")
@example(b"\x45")
@example(b"\x60")
def test_parse_never_raises_and_never_points_outside(packet):
    found = ip.parse(packet)
    if not found.malformed:
        assert all(0 <= getattr(found, f) <= len(packet) for f in FIELDS)
        assert not found.scent_at or packet[found.scent_at : found.scent_at + 2] == b"\x5c\xe7"
        assert found.scent_at + layout.LEN <= len(packet) or not found.scent_at
        assert len(found.ports) in (0, 4)
        assert len(found.source) == len(found.destination) == (4 if found.version == 4 else 16)


@quick
@given(mutated(sorted(STAMPED.values())))
def test_parse_takes_any_mutation(packet):
    found = ip.parse(packet)
    assert found.malformed or found.scent_at + layout.LEN <= len(packet) or not found.scent_at


@pytest.mark.parametrize("name", BEFORE)
def test_insert_then_remove_is_identity(name):
    before = BEFORE[name]
    found = ip.parse(before)
    made = ip.insert(before, found, b"\x5c\xe7" + SCENT[2:])
    again = ip.parse(made)
    assert (again.scent_at, again.malformed) == (found.insert_at + (2 if found.version == 4 else 4), False)
    assert (again.protocol, again.ports, again.source, again.destination) == (
        found.protocol, found.ports, found.source, found.destination,
    )  # fmt: skip
    assert ip.remove(made, again) == before
    assert len(made) - len(before) == (36 if found.version == 4 else 40)


@pytest.mark.parametrize("name", [n for n in STAMPED if STAMPED[n][0] >> 4 == 4])
def test_strip_of_ipv4_leaves_nops_and_a_right_checksum(name):
    """Invariant 3 where the header may not shrink: the length stays, nothing of the scent does."""
    packet = STAMPED[name]
    found = ip.parse(packet)
    bare = ip.strip(packet, found)
    assert len(bare) == len(packet)
    assert bare[found.scent_at - 2 :][:36] == b"\x01" * 36
    header = (bare[0] & 15) * 4
    zeroed = bare[:10] + b"\0\0" + bare[12:header]
    assert struct.unpack(">H", bare[10:12])[0] == scapy_checksum(zeroed)
    assert bare[header:] == packet[header:]


@quick
@given(st.binary(min_size=2, max_size=60).filter(lambda b: len(b) % 2 == 0))
def test_checksum_is_scapys(data):
    # A header is never all zero; where it is, 0xffff and 0 are one number (RFC 1624 section 3).
    assert ip.checksum(data) % 0xFFFF == scapy_checksum(data) % 0xFFFF
    assert ip.word_sum(data) % 0xFFFF == (ip.checksum(data) ^ 0xFFFF) % 0xFFFF


def test_a_late_fragment_has_no_headers_behind_it():
    packet = STAMPED["later fragment6"]
    found = ip.parse(packet)
    assert (found.fragment, found.protocol, found.ports) == (True, ip.UDP, b"")
