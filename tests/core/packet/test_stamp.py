import carriers
import pytest
import wire_setup
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from wire_strategies import BEFORE, STAMPED, ip_like, mended, mutated, noise, quick, without_checksum

from scentd.core.packet import outgoing_pair, stamp
from scentd.core.packet.stamp import Stamper
from scentd.core.tables import StampPair, StampTable
from scentd.wire import ip, layout

TCP4, TCP6, UDP4 = BEFORE["tcp4"], BEFORE["tcp6"], BEFORE["udp4"]
FLOWS = [BEFORE[n] for n in ("tcp4", "tcp6", "udp4", "icmp4", "udp6", "sctp4", "first fragment4", "udp4 max portless")]


def index_of(packet):
    return packet[ip.parse(packet).scent_at + 12] >> 4


def port(packet, number):
    """The packet on another flow."""
    at = ip.parse(packet).transport_at
    return packet[:at] + number.to_bytes(2, "big") + packet[at + 2 :]


def warm():
    """A stamper whose flows are all known and in a run."""
    one = wire_setup.stamper()
    for _ in range(4):
        for packet in FLOWS:
            one.stamp(packet)
    return one


@quick
@given(noise.map(ip_like))
@example(b"")
@example(b"\x45")
@example(b"\x60")
def test_arbitrary_bytes_never_raise(packet):
    """Invariant 4."""
    assert isinstance(wire_setup.stamper().stamp(packet), int)


@pytest.mark.parametrize("packet", [TCP4, TCP6, UDP4])
def test_truncations_are_malformed(packet):
    one = warm()
    assert one.stamp(packet) != layout.UNSTAMPED_MALFORMED
    for size in range(20 if packet[0] >> 4 == 4 else 44):  # until a warm flow's key is whole
        assert one.stamp(packet[:size]) == layout.UNSTAMPED_MALFORMED


@quick
@given(mutated(FLOWS))
def test_hot_path_equals_slow_path(packet):
    """Whatever packet the kernel may hand over is stamped or refused alike, and comes out as it went in.

    Lengths and header checksum are right: the kernel checked them (ip_rcv, ip6_rcv) or made them.
    """
    packet = mended(packet)
    hot, cold = warm().stamp(packet), wire_setup.stamper().stamp(packet)
    assert isinstance(hot, int) == isinstance(cold, int)
    if isinstance(hot, int):
        assert hot == cold
        return
    assert carriers.remove(hot, ip.parse(hot)) == carriers.remove(cold, ip.parse(cold))
    assert without_checksum(carriers.remove(hot, ip.parse(hot))) == without_checksum(packet)
    assert mended(hot) == hot
    assert wire_setup.verifier().verify(hot) == carriers.strip(hot, ip.parse(hot))


@pytest.mark.parametrize("name", [n for n in BEFORE if BEFORE[n][9] in (6, 17) and BEFORE[n][0] == 0x45])
def test_every_header_checksum_is_right_on_the_hot_path(name):
    """RFC 1624's corner: the identification field walks the checksum through all its values, 0 and 0xffff included."""
    one, packet = warm(), BEFORE["tcp4"]
    for number in range(0, 65536, 11):
        changed = mended(packet[:4] + number.to_bytes(2, "big") + packet[6:])
        made = one.stamp(changed)
        assert mended(made) == made


def test_a_checksum_that_the_scent_takes_up_whole(monkeypatch):
    """The subtraction's corner: where what is added equals the checksum, the rest is written 0, not 0xffff."""
    monkeypatch.setattr(outgoing_pair, "RUN", 1 << 20)
    one = warm()
    base = int.from_bytes(mended(TCP4[:4] + b"\0\0" + TCP4[6:])[10:12], "big")
    seen = set()
    for number in range(65535):
        sum_ = (base - number) % 0xFFFF  # RFC 1624 in the test's own words
        seen.add(
            one.stamp(TCP4[:4] + number.to_bytes(2, "big") + TCP4[6:10] + sum_.to_bytes(2, "big") + TCP4[12:])[10:12]
        )
    assert b"\0\0" in seen
    assert b"\xff\xff" not in seen


def test_checksum_zero_may_be_written_as_ffff():
    one = warm()
    for number in range(65536):
        changed = mended(TCP4[:4] + number.to_bytes(2, "big") + TCP4[6:])
        if changed[10:12] == b"\0\0":
            break
    other = changed[:10] + b"\xff\xff" + changed[12:]
    assert one.stamp(changed) == one.stamp(other) == mended(one.stamp(changed))


@quick
@given(st.lists(st.sampled_from(FLOWS), min_size=10, max_size=10))
def test_any_ten_first_packets_of_a_pair_carry_all_fragments(packets):
    """Of one flow or many, of any kind; beacons fill in only what packets did not."""
    one = wire_setup.stamper()
    seen = [index_of(one.stamp(packet)) for packet in packets]
    assert sorted(seen) == list(range(10))
    assert (0, wire_setup.EPOCH, 0x3FF) in one.fragments_sent()


def test_after_the_first_ten_a_flow_keeps_its_fragment_for_a_run():
    """Receivers merge packets with equal headers only (facts.md)."""
    one = wire_setup.stamper()
    seen = [index_of(one.stamp(TCP4)) for _ in range(10 + 3 * outgoing_pair.RUN)]
    runs = [seen[at : at + outgoing_pair.RUN] for at in range(10, len(seen), outgoing_pair.RUN)]
    first = runs[0][0]
    assert runs == [[(first + n) % 10] * outgoing_pair.RUN for n in range(3)]


def test_flows_are_bounded(monkeypatch):
    """Invariant 4: ports are the senders' choice, memory is not."""
    monkeypatch.setattr(stamp, "MAX_FLOWS", 8)
    one = wire_setup.stamper()
    for number in range(100):
        assert isinstance(one.stamp(port(TCP4, 1024 + number)), bytes)
        kept = sum(len(t) for t in (*one._ipv4, *one._ipv6))
        assert kept <= 8
    assert kept > 0


def test_a_profile_expires():
    one = wire_setup.stamper()
    expires = wire_setup.outgoing()[0].expires
    assert isinstance(one.stamp(TCP4), bytes)
    one.tick(expires - 1)
    assert isinstance(one.stamp(TCP4), bytes)
    one.tick(expires)
    assert one.stamp(TCP4) == layout.UNSTAMPED_NO_PROFILE
    assert one.fragments_sent() == []


def test_a_new_epoch_takes_over_at_once():
    one = warm()
    one.update(wire_setup.outgoing(wire_setup.EPOCH + 5))
    made = one.stamp(TCP4)
    assert made[30:34] == (wire_setup.EPOCH + 5).to_bytes(4, "big")
    assert one.fragments_sent()[0][2] == 1


def test_a_limit_that_a_router_named_holds_for_ten_minutes():
    one = warm()
    packet = bytes(IP(src="192.0.2.7", dst="198.51.100.9", flags="DF") / TCP(sport=1, dport=2) / (b"x" * 600))
    destination = ip.parse(packet).destination
    room = len(packet) + layout.IPV4_OPTION_LEN
    one.learn_limit(destination, room)
    assert isinstance(one.stamp(packet), bytes)
    one.learn_limit(destination, room - 1)
    assert one.stamp(packet) == layout.UNSTAMPED_TOO_BIG
    one.update(wire_setup.outgoing(int(wire_setup.NOW) + 600))
    one.tick(wire_setup.NOW + 601)
    assert isinstance(one.stamp(packet), bytes)
    assert one.limit(destination) == 1500


def test_a_limit_that_no_path_has_does_not_turn_stamping_off():
    one = warm()
    one.learn_limit(ip.parse(TCP4).destination, 68)
    assert isinstance(one.stamp(TCP4), bytes)


@pytest.mark.parametrize("packet", [TCP4, TCP6], ids=["4", "6"])
def test_learning_a_limit_forgets_only_the_flows_to_its_destination(packet):
    one = warm()
    destination = ip.parse(packet).destination
    last = 19 if packet[0] >> 4 == 4 else 39
    one.stamp(mended(packet[:last] + b"\x77" + packet[last + 1 :]))

    def flows():
        """Those to the destination, and how many there are."""
        found = [(n, key) for n, table in enumerate((*one._ipv4, *one._ipv6)) for key in table]
        assert one._flows >= len(found)
        size = len(destination)
        return {(n, key) for n, key in found if key[size : 2 * size] == destination}, len(found)

    to_destination, all_of_them = flows()
    assert 0 < len(to_destination) < all_of_them
    one.learn_limit(destination, 1400)
    assert flows() == (set(), all_of_them - len(to_destination))
    assert isinstance(one.stamp(packet), bytes)
    before = flows()
    assert before[0]
    for known in (1400, 1401, 1500, 9000):  # a replayed error costs no flow
        one.learn_limit(destination, known)
        assert flows() == before
        assert one.limit(destination) == 1400
    one.learn_limit(destination, 1399)
    assert not flows()[0]


def test_a_flow_that_is_known_keeps_to_a_new_limit():
    """The longest packet is part of what is kept of a flow."""
    one = warm()
    long = mended(TCP4 + bytes(1450 - len(TCP4)))
    assert isinstance(one.stamp(long), bytes)
    one.learn_limit(ip.parse(TCP4).destination, 1400)
    assert one.stamp(long) == layout.UNSTAMPED_TOO_BIG


def test_learned_limits_are_bounded(monkeypatch):
    monkeypatch.setattr(stamp, "MAX_FLOWS", 8)
    one = wire_setup.stamper()
    for number in range(100):
        one.learn_limit(number.to_bytes(4, "big"), 1000)
        assert len(one._learned_mtus) <= 8


def test_the_longest_packets_leave_as_they_are():
    """A length field holds 65,535: nothing may overflow there, even on a loopback of 65,536 bytes."""
    table = StampTable(
        networks=wire_setup.STAMP_TABLE.networks,
        peers=wire_setup.STAMP_TABLE.peers,
        pairs=(StampPair(0, 0, 0, ipv6_fragments=True),),
        limits=(("0.0.0.0/0", 65536), ("::/0", 65536 + 1000)),
    )
    one = wire_setup.stamper(table=table)
    for base, overhead in ((UDP4, 36), (BEFORE["udp6"], 40)):
        for size in (65535, 65536 - overhead, 65535 - overhead):
            made = one.stamp(mended(base + bytes(size - len(base))))
            if size + overhead > 65535:
                assert made == layout.UNSTAMPED_TOO_BIG
            else:
                assert len(made) == 65535


def test_nothing_grows_past_the_path_unless_it_may_be_fragmented():
    """Invariant 5: a packet that cannot be fragmented never leaves longer than the path."""
    one = warm()
    for base, overhead in ((TCP4, 36), (TCP6, 40), (BEFORE["udp6"], 40), (BEFORE["icmp6"], 40)):
        for size in range(1440, 1501):
            made = one.stamp(mended(base + bytes(size - len(base))))
            assert isinstance(made, bytes) == (size + overhead <= 1500)
    for size in range(1440, 1501):
        packet = mended(UDP4[:6] + b"\0\0" + UDP4[8:] + bytes(size - len(UDP4)))
        made = one.stamp(packet)
        flags = made[22 + 2] & 15
        assert flags == (layout.FLAG_PORTS if size + 36 <= 1500 else 0)


@pytest.mark.parametrize("name", STAMPED)
def test_a_packet_has_one_scent(name):
    """Invariant 2: what has a scent already goes out as it is."""
    assert wire_setup.stamper().stamp(STAMPED[name]) == layout.UNSTAMPED_ALREADY


def test_a_reload_keeps_the_epochs_of_pairs_that_stay():
    one = warm()
    one.configure(StampTable(wire_setup.STAMP_TABLE.networks, wire_setup.STAMP_TABLE.peers, (StampPair(0, 0, 0),)))
    assert [pair for pair, _, _ in one.fragments_sent()] == [0]
    assert isinstance(one.stamp(TCP4), bytes)
    one.configure(StampTable())
    assert one.stamp(TCP4) == layout.UNSTAMPED_NOT_A_PEER


def test_an_update_for_an_unknown_pair_is_ignored():
    one = Stamper()
    one.update(wire_setup.outgoing())
    assert one.fragments_sent() == []


def syn(source, destination, flags="S", announced=1460):
    base = IP(src=source, dst=destination) if ":" not in source else IPv6(src=source, dst=destination)
    return bytes(base / TCP(sport=4000, dport=5000, flags=flags, options=[("MSS", announced)]))


NARROW = wire_setup.NARROW_STAMP_TABLE  # between alice, a network, and bob 576 and 1280 bytes
ENDS = pytest.mark.parametrize(
    ("alice", "bob", "longest"),
    [("192.0.2.1", "198.51.100.1", 500), ("2001:db8:a::1", "2001:db8:b::1", 1180)],
)


@ENDS
@pytest.mark.parametrize("flags", ["S", "SA"])
def test_a_syn_leaves_room_for_a_scent(alice, bob, longest, flags):
    """What alice announces limits bob, what bob announces limits alice: 1180 + 60 + 40 = 1280, 500 + 40 + 36 = 576."""
    one = wire_setup.stamper(table=NARROW)
    for _ in range(2):
        made = one.stamp(syn(alice, bob, flags))
        assert carriers.remove(made, ip.parse(made)) == syn(alice, bob, flags, longest)
    packet = syn(bob, alice, flags)
    assert one.make_room(packet, ip.parse(packet)) == syn(bob, alice, flags, longest)


@ENDS
def test_a_syn_of_a_known_flow_leaves_room_too(alice, bob, longest):
    """A port that is used again: the flow has an entry in the stamper, but no SYN takes the fast path."""
    one = wire_setup.stamper(table=NARROW)
    for _ in range(20):
        assert isinstance(one.stamp(syn(alice, bob, "A")), bytes)
    made = one.stamp(syn(alice, bob))
    assert carriers.remove(made, ip.parse(made)) == syn(alice, bob, announced=longest)


def test_a_syn_of_nobody_stays():
    one = wire_setup.stamper(table=NARROW)
    strangers = syn("192.0.2.1", "10.99.0.1"), syn("10.99.0.1", "198.51.100.1"), syn("198.51.100.1", "10.99.0.1")
    for packet in (*strangers, syn("192.0.2.1", "198.51.100.1", "A"), b"", b"\x45"):
        assert one.make_room(packet, ip.parse(packet)) is packet


def test_a_syn_leaves_room_on_a_path_that_a_router_told_of():
    one, bob = wire_setup.stamper(), "2001:db8:b::1"
    one.learn_limit(ip.parse(syn("2001:db8:a::1", bob)).destination, 1290)
    made = one.stamp(syn("2001:db8:a::1", bob))
    assert carriers.remove(made, ip.parse(made)) == syn("2001:db8:a::1", bob, announced=1190)
