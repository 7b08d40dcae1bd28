"""The maps' entries against what the queue's stamper and verifier make of the same tables."""

import sys
from ipaddress import ip_address, ip_network
from struct import Struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_strategies import quick

from scentd.core.offload.encode import (
    SHARED_MIN,
    Marks,
    diff,
    outgoing_entry,
    prefix_key,
    quarantine_entries,
    stamp_entries,
    verify_entries,
)
from scentd.core.packet.stamp import IP_MAX
from scentd.core.packet.verify import IncomingPair
from scentd.core.tables import Incoming, IncomingKeys, StampPair, StampTable, Treatments, VerifyTable
from scentd.errors import HostError
from scentd.model import Outgoing
from scentd.prefix import PrefixMap, numeric
from scentd.wire import ip, layout, maps, tag

LITTLE = sys.byteorder == "little"
MARKS = Marks(0x40000000, 0x00FF0000)
STRICT = Treatments("reject", "drop", "pass", pair=7)
# Every prefix is one of few, so that they often nest, and every address that they tell apart is tried.
FIRST, VARYING = {4: 7, 6: 63}, 2  # bits: where the addresses begin to differ, in how many
ADDRESSES = {
    4: [(n << 32 - FIRST[4] - VARYING).to_bytes(4, "big") for n in range(1 << VARYING)],
    6: [(n << 128 - FIRST[6] - VARYING).to_bytes(16, "big") for n in range(1 << VARYING)],
}
ALL = [*ADDRESSES[4], *ADDRESSES[6]]
texts = [
    str(ip_network((address, length), strict=False))
    for family, addresses in ADDRESSES.items()
    for address in addresses
    for length in (0, *range(FIRST[family], FIRST[family] + VARYING + 1))
]
prefixes = st.sampled_from(sorted(set(texts)))


def numbered(most):
    return st.lists(st.tuples(prefixes, st.integers(0, most)), max_size=8).map(tuple)


def look_up(found, at, scope, address):
    """(number, detail) as the program finds it: `at` is the place of the IPv4 lengths in the settings."""
    family = 4 if len(address) == 4 else 6
    count, bits = maps.LENGTHS.unpack_from(found.settings, at + maps.LENGTHS_SIZE * (family == 6))
    for length in bits[:count]:
        network = ip_network((address, length), strict=False).network_address
        value = found.prefixes.get(maps.PREFIX.pack(scope, family, length, network.packed))
        if value is not None:
            return maps.PREFIX_VALUE.unpack(value)
    return None


def incoming(pair=0, key_id=b"ABCD", network=("10.2.0.0/24",), peer=("10.1.0.0/24",), own=(b"OURS",), **more):
    tags = {n: bytes((n,)) * 16 for n in (7, 8, 9)}
    keys = tuple(IncomingKeys(key_id + k, tags, {n: bytes(15) + t[:1] for n, t in tags.items()}) for k in own)
    return Incoming(pair, network, peer, pair, keys, **more)


# -- stamping ------------------------------------------------------------


def stamped(found, source, destination):
    """(pair, path MTU) as the program finds them."""
    network = look_up(found, maps.STAMP_SETTINGS_LOCAL4_AT, maps.SCOPE_LOCAL, source)
    if network is None:
        return None
    return look_up(found, maps.STAMP_SETTINGS_ROUTE4_AT, maps.SCOPE_ROUTE + network[0], destination)


@quick
@given(numbered(1), numbered(2), numbered(3), st.sets(st.tuples(st.integers(0, 1), st.integers(0, 2))),
       st.lists(prefixes, max_size=3))  # fmt: skip
def test_every_packet_is_of_the_pair_that_the_stamper_would_choose(networks, peers, limits, pairs, unsigned):
    numbers = {places: number for number, places in enumerate(sorted(pairs))}
    mtus = tuple((prefix, (0, 1280, 1500, 70000)[n]) for prefix, n in limits)
    table = StampTable(networks, peers, tuple(StampPair(n, *p) for p, n in numbers.items()), mtus)
    found = stamp_entries(table, unsigned, False, 1)
    of_source, of_destination, limit = PrefixMap(networks), PrefixMap(peers), PrefixMap(mtus)
    silent = PrefixMap((prefix, True) for prefix in unsigned)
    for source in ALL:
        network = of_source.get(source)
        for destination in ADDRESSES[4 if len(source) == 4 else 6]:
            peer = of_destination.get(destination)
            made = stamped(found, source, destination)
            if peer is None or (network is None and not silent.get(source)):
                assert made is None
            elif network is None:
                assert made == (maps.NO_PAIR, IP_MAX)
            elif (network, peer) in numbers:
                assert made == (numbers[network, peer], min(limit.get(destination) or IP_MAX, IP_MAX))
            else:
                assert made is None or made[0] == maps.NO_PAIR


def test_stamp_entries():
    table = StampTable(
        networks=(("10.1.0.0/24", 0), ("::/0", 0)),
        peers=(("10.2.0.0/16", 5), ("fd00:2::5", 5)),
        pairs=(StampPair(3, 0, 5),),
        limits=(("10.0.0.0/8", 1500), ("10.2.7.0/24", 1400), ("10.9.0.0/16", 1300)),
    )
    found = stamp_entries(table, (), True, 2_000_000)
    decoded = {maps.PREFIX.unpack(k): maps.PREFIX_VALUE.unpack(v) for k, v in found.prefixes.items()}
    zeros, route = bytes(12), maps.SCOPE_ROUTE
    assert decoded == {
        (maps.SCOPE_LOCAL, 4, 24, b"\x0a\1\0\0" + zeros): (0, 0),
        (maps.SCOPE_LOCAL, 6, 0, bytes(16)): (0, 0),
        (route, 4, 16, b"\x0a\2\0\0" + zeros): (3, 1500),
        (route, 4, 24, b"\x0a\2\7\0" + zeros): (3, 1400),
        (route, 6, 128, ip_address("fd00:2::5").packed): (3, IP_MAX),
    }, "no entry for routes that lead to no peer"
    run, forwarded, *masks = maps.STAMP_SETTINGS.unpack(found.settings)
    masks, used = masks[: 1 + maps.MASKS_MAX], masks[1 + maps.MASKS_MAX :]
    assert (run, forwarded, masks) == (2_000_000, 1, [0] * (1 + maps.MASKS_MAX))
    assert [maps.LENGTHS.unpack(u) for u in used] == [
        (1, bytes([24]).ljust(15, b"\0")), (1, bytes(15)), (2, bytes([24, 16]).ljust(15, b"\0")),
        (1, bytes([128]).ljust(15, b"\0")),
    ]  # fmt: skip


def test_addresses_of_the_host_are_told_apart_if_it_forwards():
    table = StampTable((("10.1.0.0/24", 4), ("10.1.0.7", 5)), (("10.2.0.0/24", 0),), (StampPair(0, 4, 0),))
    own = ("10.1.0.1", "10.1.0.7", "10.3.0.1", "10.9.0.1", "fd00::1")
    found = stamp_entries(table, ("10.3.0.0/24",), 1, 1, own)
    decoded = {k: maps.PREFIX_VALUE.unpack(v) for k, v in found.prefixes.items()}
    assert {k: v for k, v in decoded.items() if maps.PREFIX.unpack(k)[0] == maps.SCOPE_LOCAL} == {
        prefix_key(maps.SCOPE_LOCAL, numeric(text)): value
        for text, value in {
            "10.1.0.0/24": (4, 0), "10.1.0.1": (4, 1), "10.1.0.7": (5, 1),
            "10.3.0.0/24": (SHARED_MIN, 0), "10.3.0.1": (SHARED_MIN, 1),
        }.items()
    }  # fmt: skip
    assert stamp_entries(table, (), 0, 1, own).prefixes == stamp_entries(table, (), 0, 1).prefixes


def test_networks_that_sign_nothing_have_a_number_only_if_there_are_any():
    table = StampTable((("10.1.0.0/24", 4),), (("10.2.0.0/24", 0),), (StampPair(0, 4, 0),))
    scopes = [maps.PREFIX.unpack(k)[0] for k in stamp_entries(table, ("10.1.0.0/25",), False, 1).prefixes]
    assert sorted(scopes) == [maps.SCOPE_LOCAL, maps.SCOPE_ROUTE + 4], "it lies in one that signs"
    found = stamp_entries(table, ("10.0.0.0/8",), False, 1)
    assert stamped(found, b"\x0a\7\0\1", b"\x0a\2\0\1") == (maps.NO_PAIR, IP_MAX)
    assert stamped(found, b"\x0a\1\0\1", b"\x0a\2\0\1") == (0, IP_MAX)


def test_an_outgoing_epoch():
    fragments = tuple(bytes((n,)) * layout.FRAGMENT_LEN for n in range(layout.FRAGMENTS))
    out = Outgoing(
        "acme", "service", 1_700_000_000, b"ABCD", bytes(range(16)), bytes(range(10)), fragments, 1_700_000_060.5
    )
    key, value = outgoing_entry(StampPair(3, 0, 0, True, True), out, 1_600_000_000.0)
    assert key == Struct("=I").pack(3)
    assert len(value) == maps.OUTGOING_SIZE
    *tag_key, expires_at, run_until, head, sent, index, first, epoch, flags, pieces = maps.OUTGOING.unpack(value)
    assert tag_key == [0x0706050403020100, 0x0F0E0D0C0B0A0908]
    assert (expires_at, run_until, sent, index, first, epoch) == (100_000_060_500_000_000, 0, 0, 0, 0, 1_700_000_000)
    assert flags == maps.PAIR_SENDER | maps.PAIR_IPV6_FRAGMENTS | 36 << maps.PAIR_OVERHEAD4 | 40 << maps.PAIR_OVERHEAD6
    for i, fragment in enumerate(fragments):
        piece = pieces[i * maps.PIECE_SIZE :][: maps.PIECE_SIZE]
        start = head.to_bytes(8, sys.byteorder)
        start = start[:3] + piece[maps.PIECE_GLANCE_AT :][:1] + start[4:]
        assert start + piece[: layout.TAGGED_LEN - 8] == tag.head(0, i, b"ABCD", out.epoch, i, fragment)
    if LITTLE:
        with_flags = (head | layout.FLAG_PORTS << 16).to_bytes(8, "little")
        assert with_flags == tag.head(layout.FLAG_PORTS, 0, b"ABCD", out.epoch, 0, fragments[0])[:8]


def test_an_epoch_that_expired_before_the_boot_is_expired():
    out = Outgoing("acme", "service", 1, b"ABCD", bytes(16), bytes(10), (bytes(13),) * 10, 61.0)
    _, value = outgoing_entry(StampPair(0, 0, 0), out, 1_600_000_000.0)
    assert Struct("=Q").unpack_from(value, maps.OUTGOING_EXPIRES_AT) == (0,)


# -- verifying -----------------------------------------------------------

senders = st.builds(
    lambda key, network, peer: (key, tuple(network), tuple(peer)),
    st.sampled_from([b"ABCD", b"EFGH"]),
    st.lists(prefixes, max_size=2),
    st.lists(prefixes, min_size=1, max_size=3),
)


@quick
@given(st.lists(senders, max_size=maps.CANDIDATES))
def test_every_scent_is_of_the_pair_that_the_verifier_would_choose(drawn):
    table = VerifyTable(tuple(incoming(n, *d) for n, d in enumerate(drawn)))
    found = verify_entries(table, [str(ip_address(a)) for a in ALL], MARKS)
    assert found.pairs == frozenset(range(len(drawn)))
    known = [IncomingPair(i) for i in table.incoming]
    for source in ALL:
        for destination in ADDRESSES[4 if len(source) == 4 else 6]:
            parsed = ip.Parsed(source=source, destination=destination)
            for key_id in (b"ABCD", b"EFGH"):
                first = (r.incoming.pair for r in known if key_id in r.incoming.by_sender() and r.serves(parsed))
                assert identified(found, key_id, source, destination) == next(first, None)


def identified(found, key_id, source, destination):
    """The pair of a scent as the program finds it."""
    network = look_up(found, maps.VERIFY_SETTINGS_LOCAL4_AT, maps.SCOPE_LOCAL, destination)
    if network is None:
        return None
    for candidate in range(maps.CANDIDATES):
        value = found.identities.get(maps.IDENTITY.pack(key_id, network[0], candidate))
        if value is None:
            return None
        pair, peer, *_ = maps.INCOMING.unpack(value)
        if look_up(found, maps.VERIFY_SETTINGS_MEMBER4_AT, maps.SCOPE_MEMBER + peer, source):
            return pair
    return None


def test_identities():
    table = VerifyTable((
        incoming(6, network=("10.2.0.0/24",), sender_bound=True), incoming(7, network=("10.3.0.0/24",)),
        incoming(8, peer=("10.4.0.0/24",)),
    ))  # fmt: skip
    found = verify_entries(table, (), MARKS)
    decoded = {maps.IDENTITY.unpack(k): maps.INCOMING.unpack(v) for k, v in found.identities.items()}
    assert decoded.pop((b"ABCD", 0, 0))[0] in (6, 7, 8), "what the program asks whether the key is known at all"
    assert {k: v[:4] for k, v in decoded.items()} == {
        (b"ABCD", 7, 0): (6, 6, maps.PAIR_SENDER, 8),
        (b"ABCD", 7, 1): (8, 8, 0, 8),
        (b"ABCD", 8, 0): (7, 6, 0, 8),
    }, "a peer is one, whichever network it speaks to; a network's number is that of its first pair, and one"
    words = [word for n in (7, 8, 9) for word in (int.from_bytes(bytes((n,)) * 8, "little"),) * 2]
    glances = [word for n in (7, 8, 9) for word in (0, n << 56)]
    assert list(decoded[b"ABCD", 7, 0][4:-2]) == words + glances


def test_identities_of_a_network_with_two_keys():
    """The second key's entry is as many candidates behind as there are candidates."""
    found = verify_entries(VerifyTable((incoming(6), incoming(7, own=(b"OURS", b"NEXT")))), (), MARKS)
    decoded = {maps.IDENTITY.unpack(k): maps.INCOMING.unpack(v) for k, v in found.identities.items()}
    assert {key[2]: (v[0], v[2], v[-2]) for key, v in decoded.items() if key[1]} == {
        0: (6, 0, b"ABCDOURS"),
        1: (7, maps.PAIR_TWO_KEYS, b"ABCDOURS"),
        1 + maps.CANDIDATES: (7, maps.PAIR_TWO_KEYS, b"ABCDNEXT"),
    }


def test_what_networks_share_has_a_number_of_its_own():
    table = VerifyTable((
        incoming(0, network=("10.2.0.0/16",)), incoming(1, network=("10.2.3.0/24",)),
        incoming(2, b"EFGH", ("fd00::5",)),
    ))  # fmt: skip
    found = verify_entries(table, (), MARKS)
    at, scope = maps.VERIFY_SETTINGS_LOCAL4_AT, maps.SCOPE_LOCAL
    assert look_up(found, at, scope, b"\x0a\2\1\1") == (1, 0)
    assert look_up(found, at, scope, ip_address("fd00::5").packed) == (3, 0)
    shared = look_up(found, at, scope, b"\x0a\2\3\1")[0]
    assert shared >= SHARED_MIN
    numbers = [maps.IDENTITY.pack(b"ABCD", shared, c) for c in (0, 1)]
    assert [maps.INCOMING.unpack(found.identities[n])[0] for n in numbers] == [0, 1]


def test_more_candidates_than_the_program_asks():
    peers = [incoming(n, peer=(f"10.{n}.0.0/24",)) for n in range(maps.CANDIDATES + 1)]
    assert len(verify_entries(VerifyTable(tuple(peers[:-1])), (), MARKS).identities) == maps.CANDIDATES + 1
    with pytest.raises(HostError, match=r"network\.addresses: .*41424344.*datapath\.offload"):
        verify_entries(VerifyTable(tuple(peers)), (), MARKS)


treatments = st.builds(Treatments, *[st.sampled_from(["drop", "reject", "pass"])] * 3)


@quick
@given(st.lists(senders, max_size=3), st.lists(st.tuples(prefixes, treatments), max_size=6), treatments)
def test_every_sender_is_treated_as_the_queue_would(drawn, treated, default):
    table = VerifyTable(tuple(incoming(n, *d) for n, d in enumerate(drawn)), tuple(treated), default)
    found = verify_entries(table, (), MARKS)
    by_source, verified = PrefixMap(treated), PrefixMap((p, True) for _, _, peer in drawn for p in peer)
    fallback = maps.VERIFY_SETTINGS.unpack(found.settings)[5]
    for source in ALL:
        value = look_up(found, maps.VERIFY_SETTINGS_SOURCE4_AT, maps.SCOPE_SOURCE, source)
        expected = default.absent != "pass" or verified.get(source) is True
        assert (value[1] if value else fallback) == bits(by_source.get(source) or default, expected)


def bits(treated, expected):
    order = ("drop", "reject", "pass")
    rejected, absent, fragment = map(order.index, (treated.rejected, treated.absent, treated.absent_ipv6_fragment))
    return rejected | absent << 2 | fragment << 4 | expected << 6


def test_verify_settings():
    table = VerifyTable(
        (incoming(),), (("10.1.0.0/24", STRICT),), Treatments("drop", "reject", "pass"), 60.0, 10.5, 0.25
    )
    found = verify_entries(table, (), MARKS)
    *numbers, _, local4, _, source4, _, member4, _, quarantine4, _, _, _ = maps.VERIFY_SETTINGS.unpack(found.settings)
    assert numbers == [60_000_000_000, 10_500_000_000, 250_000_000, *MARKS, 0b1_10_01_00]
    assert [maps.LENGTHS.unpack(u)[0] for u in (local4, source4, member4, quarantine4)] == [1, 1, 1, 0]
    value = look_up(found, maps.VERIFY_SETTINGS_SOURCE4_AT, maps.SCOPE_SOURCE, b"\x0a\1\0\1")
    assert value == (7, 0b1_10_00_01)


def test_a_network_without_addresses_is_the_hosts_own():
    found = verify_entries(VerifyTable((incoming(network=()),)), ("10.2.0.5", "fd00:2::5"), MARKS)
    for address in ("10.2.0.5", "fd00:2::5"):
        assert look_up(found, maps.VERIFY_SETTINGS_LOCAL4_AT, maps.SCOPE_LOCAL, ip_address(address).packed) == (1, 0)
    assert look_up(found, maps.VERIFY_SETTINGS_LOCAL4_AT, maps.SCOPE_LOCAL, b"\x0a\2\0\6") is None


def test_nobody_is_released_inside_a_longer_quarantine():
    made = quarantine_entries({"10.0.0.0/8": 50, "10.1.0.0/16": 90, "10.1.2.3": 20, "10.9.9.9": 60, "fd00::/64": 7})
    decoded = {
        maps.PREFIX.unpack(k)[1:3]: maps.PREFIX_VALUE.unpack(v)
        for k, v in made.items()
        if k[8:12] != b"\x0a\x09\x09\x09"
    }
    assert decoded == {(4, 8): (50, 0), (4, 16): (90, 0), (4, 32): (90, 0), (6, 64): (7, 0)}
    assert {maps.PREFIX.unpack(k)[0] for k in made} == {maps.SCOPE_QUARANTINE}


# -- changes -------------------------------------------------------------


def test_settings_cover_old_and_new_entries():
    old = stamp_entries(StampTable((("10.1.0.0/24", 0),), (("10.2.0.0/16", 0),), (StampPair(0, 0, 0),)), (), False, 1)
    new = stamp_entries(StampTable((("10.1.0.0/25", 0),), (("10.2.0.0/16", 0),), (StampPair(0, 0, 0),)), (), True, 2)
    both = new.settings_for(old.prefixes.keys() | new.prefixes.keys())
    run, forwarded, *_ = maps.STAMP_SETTINGS.unpack(both)
    local4 = maps.LENGTHS.unpack_from(both, maps.STAMP_SETTINGS_LOCAL4_AT)
    assert (run, forwarded, local4) == (2, 1, (2, bytes([25, 24]).ljust(15, b"\0")))
    assert new.settings_for(new.prefixes) == new.settings
    verify = verify_entries(VerifyTable((incoming(),)), (), MARKS)
    assert verify.settings_for(verify.prefixes) == verify.settings
    held = verify.settings_for([*verify.prefixes, *quarantine_entries({"10.0.0.1": 1, "fd00::/48": 1})])
    assert maps.LENGTHS.unpack_from(held, maps.VERIFY_SETTINGS_QUARANTINE4_AT)[1][0] == 32
    assert maps.LENGTHS.unpack_from(held, maps.VERIFY_SETTINGS_QUARANTINE6_AT)[1][0] == 48


@pytest.mark.parametrize(
    ("setting", "make"),
    [
        ("network.addresses", lambda p: stamp_entries(StampTable(tuple((x, 0) for x in p)), (), False, 1)),
        ("peer.addresses, with", lambda p: stamp_entries(
            StampTable((("10.0.0.1", 0),), tuple((x, 0) for x in p), (StampPair(0, 0, 0),)), (), False, 1)),
        ("peer.addresses", lambda p: verify_entries(VerifyTable((incoming(peer=tuple(p)),)), (), MARKS)),
        ("policy.do", lambda p: verify_entries(VerifyTable(), (), MARKS).settings_for(
            quarantine_entries(dict.fromkeys(p, 1)))),
    ],
)  # fmt: skip
def test_more_lengths_than_the_program_tries(setting, make):
    lengths = [f"fd00::/{n}" for n in range(16, 16 + maps.LENGTHS_MAX)]
    make([*lengths, *(f"10.0.0.0/{n}" for n in range(8, 8 + maps.LENGTHS_MAX))])
    with pytest.raises(HostError, match=rf"^{setting}.*IPv6 .* 16 different lengths.*datapath\.offload"):
        make([*lengths, "::/0"])


entry_maps = st.dictionaries(st.binary(max_size=1), st.binary(max_size=1), max_size=6)


@quick
@given(entry_maps, entry_maps)
def test_a_diff_makes_one_of_the_other(have, want):
    delete, change = diff(have, want)
    assert {k: v for k, v in have.items() if k not in delete} | dict(change) == want
    assert all(have.get(k) != v for k, v in change)
    assert set(delete) <= have.keys()


def test_what_a_peers_syn_may_announce():
    """By the prefix of the path, less headers and scent; a network that only stamps has the number 0."""
    table = StampTable(
        networks=(("10.2.0.0/24", 4), ("10.8.0.0/24", 5)),
        peers=(("10.1.0.0/16", 0), ("fd00::/16", 0), ("10.9.0.0/16", 1)),
        pairs=(StampPair(0, 4, 0),),
        limits=(("10.0.0.0/8", 1500), ("10.1.7.0/24", 576), ("10.1.8.0/24", 1500), ("fd00::/32", 1280)),
    )
    found = verify_entries(VerifyTable((incoming(),)), (), MARKS, table)
    decoded = {k: maps.PREFIX_VALUE.unpack(v) for k, v in found.prefixes.items()}
    assert {text: decoded[prefix_key(maps.SCOPE_LOCAL, numeric(text))] for text in ("10.2.0.0/24", "10.8.0.0/24")} == {
        "10.2.0.0/24": (1, 1),
        "10.8.0.0/24": (0, 1),
    }
    longest = {
        k: v[1] >> maps.TREATMENTS_SEGMENT for k, v in decoded.items() if maps.PREFIX.unpack(k)[0] == maps.SCOPE_SOURCE
    }
    wanted = {
        "10.1.0.0/16": 1424,
        "10.1.0.0/24": 1424,
        "10.1.7.0/24": 500,
        "fd00::/16": IP_MAX - 100,
        "fd00::/32": 1180,
    }
    assert longest == {prefix_key(maps.SCOPE_SOURCE, numeric(text)): n for text, n in wanted.items()}
