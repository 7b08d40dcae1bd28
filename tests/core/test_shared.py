"""Addresses that several peers have: the strictest holds, nobody is charged, and everybody is told."""

from ipaddress import ip_network

from scentd.config.sections import Config, Peer
from scentd.core.closed import closed
from scentd.core.shared import shared, strictest, treatments
from scentd.core.tables import Treatments
from scentd.prefix import owners
from scentd.wire.maps import NO_PAIR

RED = Peer("red", "r", ["192.0.2.1", "10.0.0.0/8"], rejected="pass", absent="drop")
BLUE = Peer("blue", "b", ["192.0.2.1"], rejected="reject", absent_ipv6_fragments="drop")
INNER = Peer("inner", "i", ["10.1.0.0/16", "fd00::/8"], absent="reject")
PEERS = [RED, BLUE, INNER]


def test_who_has_a_prefix():
    found = dict(owners([["10.0.0.0/8", "10.0.0.0/8"], ["10.1.0.0/16"], ["10.1.2.3", "fd00::/8"]]))
    assert [(length, sorted(those)) for (_, _, length), those in found.items()] == [
        (8, [0]), (16, [0, 1]), (32, [0, 1, 2]), (8, [2]),
    ]  # fmt: skip


def test_each_is_told_what_it_shares():
    one, inner = ip_network("192.0.2.1/32"), ip_network("10.1.0.0/16")
    assert shared(PEERS) == {"red": (inner, one), "blue": (one,), "inner": (inner,)}
    assert shared([RED]) == {"red": ()}


def test_the_strictest_treatment_holds_and_is_nobodys():
    found = dict(treatments(PEERS, {"red": 4, "blue": 5, "inner": 6}))
    assert found["10.0.0.0/8"] == Treatments("pass", "drop", "drop", 4)
    assert found["fd00::/8"] == Treatments("drop", "reject", "reject", 6)
    assert found["10.1.0.0/16"] == Treatments("drop", "drop", "drop", NO_PAIR)
    assert found["192.0.2.1/32"] == Treatments("reject", "drop", "drop", NO_PAIR)
    gentle = Treatments("pass", "pass", "pass", 1)
    assert strictest([gentle, gentle]) == Treatments("pass", "pass", "pass", NO_PAIR)


def test_the_guard_keeps_a_shared_address_closed_if_one_of_them_is_strict():
    """Whichever of the two is configured last."""
    for peers in ([RED, BLUE], [BLUE, RED]):
        found = closed(Config(peer=peers))
        assert found is not None
        assert (4, 0xC0000201, 0xC0000201) in found.strict
    assert closed(Config(peer=[BLUE])) is None
