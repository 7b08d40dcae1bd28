import struct

import carriers
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
    made = carriers.insert(before, found, b"\x5c\xe7" + SCENT[2:])
    again = ip.parse(made)
    assert (again.scent_at, again.malformed) == (found.insert_at + (2 if found.version == 4 else 4), False)
    assert (again.protocol, again.ports, again.source, again.destination) == (
        found.protocol, found.ports, found.source, found.destination,
    )  # fmt: skip
    assert carriers.remove(made, again) == before
    assert len(made) - len(before) == (36 if found.version == 4 else 40)


@pytest.mark.parametrize("name", [n for n in STAMPED if STAMPED[n][0] >> 4 == 4])
def test_strip_of_ipv4_leaves_nops_and_a_right_checksum(name):
    """Invariant 3 where the header may not shrink: the length stays, nothing of the scent does."""
    packet = STAMPED[name]
    found = ip.parse(packet)
    bare = carriers.strip(packet, found)
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


FIXED = b"\x60\0\0\0\0\0\x3c\x40" + bytes(32)  # IPv6, Destination Options follow


def with_headers(*contents):
    """An IPv6 packet with a Destination Options header around each of the contents, and nothing behind."""
    made = FIXED
    for number, content in enumerate(contents, 1):
        assert len(content) % 8 == 6
        made += bytes((59 if number == len(contents) else 60, len(content) // 8)) + content
    return made[:4] + (len(made) - 40).to_bytes(2, "big") + made[6:]


class Counted(bytes):
    """Bytes that count how often they are looked at: the cost of a walk, without a clock."""

    reads = 0

    def __getitem__(self, key):
        self.reads += 1
        return super().__getitem__(key)


NOTHING = b"\x3e\0"


@pytest.mark.parametrize("content", [
    b"\0" * 2046, b"\1\0" * 1023, b"\0\0\x3e\0" * 511 + b"\0\0", NOTHING * 1023, b"\0" * 7 + NOTHING * 1019 + b"\0",
], ids=["pad1", "padn", "mixed", "options", "padding first"])  # fmt: skip
def test_long_headers_full_of_small_options_are_malformed_soon(content):
    """16 KB in eight headers cost no more than the limits allow in the first."""
    packet = Counted(with_headers(*[content] * 8))
    assert len(packet) > 16000
    assert ip.parse(packet).malformed
    assert packet.reads < 200


def test_the_dearest_packet_within_the_limits_is_bounded():
    content = b"\0" * 7 + (NOTHING + b"\0" * 7) * 7 + NOTHING + b"\0" * 6
    packet = Counted(with_headers(*[content] * layout.HEADERS_MAX))
    assert not ip.parse(packet).malformed
    assert packet.reads < 2000


@pytest.mark.parametrize(("content", "malformed"), [
    (b"\0" * 6, False),
    (NOTHING + b"\0" * 7 + NOTHING + b"\1\1\0", False),
    (NOTHING + b"\0" * 8 + NOTHING + NOTHING, True),
    (NOTHING + b"\1\5" + bytes(5) + NOTHING + b"\1\1\0", False),
    (NOTHING + b"\1\6" + bytes(6) + NOTHING + NOTHING, True),
    (NOTHING + b"\1\2\0\0" + b"\1\2\0\0" + NOTHING * 2, True),
    (NOTHING * 7, False),
    (NOTHING * 8 + b"\1\4" + bytes(4), False),
    (NOTHING * 11, True),
])  # fmt: skip
def test_padding_and_options_have_limits(content, malformed):
    """As in Linux: seven bytes of padding in a row, eight options that are none."""
    assert ip.parse(with_headers(content)).malformed is malformed


def test_limits_are_counted_anew_in_each_header():
    assert not ip.parse(with_headers(NOTHING * 7, NOTHING * 7, b"\0" * 6, b"\0" * 6)).malformed


def fragmented(field, inner=ip.UDP):
    packet = FIXED[:6] + bytes((ip.FRAGMENT,)) + FIXED[7:] + bytes((inner, 0)) + field.to_bytes(2, "big") + bytes(4)
    packet += b"\x9c\x40\x01\xbb" + bytes(20)
    return packet[:4] + (len(packet) - 40).to_bytes(2, "big") + packet[6:]


@pytest.mark.parametrize("field", [0, 2, 4, 6])
def test_an_atomic_fragment_is_a_whole_packet_with_ports(field):
    """RFC 6946; the two reserved bits say nothing."""
    found = ip.parse(fragmented(field))
    assert (found.fragment, found.ports, found.transport_at) == (False, b"\x9c\x40\x01\xbb", 48)
    assert (found.atomic, found.has_room) == (True, False)  # and a stamper leaves it alone


@pytest.mark.parametrize("field", [1, 8, 9, 0xFFF8])
def test_a_piece_of_a_packet_is_a_fragment(field):
    found = ip.parse(fragmented(field))
    assert (found.fragment, found.ports, found.atomic, found.has_room) == (True, b"", False, True)
