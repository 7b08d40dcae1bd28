"""Values are built by the generated offsets, so that a member that moves is noticed."""

from ipaddress import ip_address
from struct import Struct, error

import pytest

from scentd.core.offload import decode
from scentd.core.offload.encode import outgoing_entry
from scentd.core.tables import StampPair
from scentd.model import Outgoing
from scentd.wire import layout, maps, tag

SEALED = bytes(range(layout.PROFILE_LEN))
IPV6 = ip_address("fd00::5").packed


def filled(struct, **members):
    """The bytes of a struct whose members are u32, or bytes; `family` is a byte."""
    value = bytearray(getattr(maps, f"{struct}_SIZE"))
    for name, member in members.items():
        form = "B" if name == "family" and struct != "NODE" else "=I"
        data = member if isinstance(member, bytes) else Struct(form).pack(member)
        at = getattr(maps, f"{struct}_{name.upper()}_AT")
        value[at : at + len(data)] = data
    return bytes(value)


def test_an_event():
    members = {
        "kind": maps.EVENT_PROFILE,
        "pair": 3,
        "epoch": 1_700_000_000,
        "glance": 0xC3,
        "sealed": SEALED,
        "key_ids": b"themours",
    }
    found = decode.parse_event(filled("EVENT", **members, source=b"\x0a\1\0\7", family=4))
    levels = tag.glance_levels(0xC3)
    assert found == (maps.EVENT_PROFILE, 3, 1_700_000_000, *levels, b"\x0a\1\0\7", b"themours", SEALED)
    assert (found.load, found.threat) == (0.8, 0.2)
    assert decode.parse_event(filled("EVENT", **members, source=IPV6, family=6)).source == IPV6


@pytest.mark.parametrize("size", [0, maps.EVENT_SIZE - 1, maps.EVENT_SIZE + 1])
def test_what_is_no_event(size):
    with pytest.raises(error):
        decode.parse_event(bytes(size))


def test_what_is_known_of_a_pair():
    value = filled("RECEIVING", lock=1, highest=90, before=80, since=91, seen=0x3FF, glance=0x0F, nodes=5, nodes_at=92,
                   leapt=95, lag=20, accepted=4, key_ids=b"themours", sealed=SEALED, family=6, source=IPV6)  # fmt: skip
    assert decode.parse_receiving(value) == (90, 80, 91, 0x3FF, 0.0, 1.0, IPV6, b"themours", SEALED, 4, 95, 20)
    assert decode.parse_receiving(bytes(maps.RECEIVING_SIZE)).source == b""


def test_a_node():
    assert decode.parse_node(filled("NODE", pair=7, family=4, address=b"\x0a\1\0\7")) == (7, b"\x0a\1\0\7")
    assert decode.parse_node(filled("NODE", pair=7, family=6, address=IPV6)) == (7, IPV6)


@pytest.mark.parametrize(("sent", "bits"), [(0, 0), (1, 1), (9, 0x1FF), (10, 0x3FF), (13, 0x3FF)])
def test_fragments_that_have_left(sent, bits):
    out = Outgoing("acme", "service", 1_700_000_000, b"ABCD", bytes(16), bytes(10), (bytes(13),) * 10, 1_700_000_060.0)
    _, value = outgoing_entry(StampPair(3, 0, 0), out, 1_600_000_000.0)
    at = maps.OUTGOING_SENT_AT
    assert decode.parse_outgoing(value[:at] + Struct("=I").pack(sent) + value[at + 4 :]) == (1_700_000_000, bits)


def test_the_names_of_counters():
    """Each index has a name; a worker's report has the same names."""
    stamp, verify = decode.COUNTERS["stamp"], decode.COUNTERS["verify"]
    assert sorted(stamp) == list(range(maps.STAMP_COUNTERS))
    assert sorted(verify) == list(range(maps.VERIFY_COUNTERS))
    assert (stamp[0], stamp[2], stamp[maps.STAMP_COUNT_FAILED]) == ("stamped", "unstamped:not-a-peer", "offload_failed")
    assert verify[layout.TREATMENT_PASS] == "accepted"
    assert verify[layout.TREATMENT_DROP] == "accepted:drop"
    assert verify[3 * layout.VERDICT_BAD_TAG + layout.TREATMENT_REJECT] == "bad-tag:reject"
    assert verify[maps.VERIFY_COUNT_QUARANTINED] == "offload_quarantined"


def test_a_tally_of_several_processors():
    """Packets are summed; the time and the epoch are those of the last one."""
    key = maps.TALLY_KEY.pack(7, 3 * layout.VERDICT_FUTURE + layout.TREATMENT_DROP)
    parts = [maps.TALLY.pack(*part) for part in ((2, 100, 900), (0, 0, 0), (5, 101, 800))]
    assert decode.parse_tally("verify", key, parts) == (7, "future:drop", 7, 101, 800)
