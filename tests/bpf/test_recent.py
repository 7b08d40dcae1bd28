"""What a processor remembers of a flow in a tick of the clock stands for the same bytes alone."""

from __future__ import annotations

import time
from random import Random

import carriers
import pytest
import wire_setup
from bpf_programs import COARSE, Kernel, next_tick
from msgspec.structs import replace
from packet_vectors import ip4, ip6, raw, tcp, udp
from scapy.layers.inet import ICMP

from scentd.core.packet.stamp import build_scent
from scentd.core.tables import StampTable
from scentd.wire import ip, layout

pytestmark = pytest.mark.netns

NOW = wire_setup.NOW + 0.5
TRIES = 50  # a machine that is busy may let the clock tick between two packets


@pytest.fixture(scope="module")
def kernel():
    kernel = Kernel()
    kernel.stamp_by()
    kernel.verify_by()
    yield kernel
    kernel.close()


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def bare(request):
    return bytes((ip4 if request.param == 4 else ip6)() / tcp())


def in_one_tick(work):
    """What `work` returns, of a time in which the clock stood still. It begins anew if it did not."""
    for _ in range(TRIES):
        next_tick()
        tick = time.clock_gettime_ns(COARSE)
        made = work()
        if time.clock_gettime_ns(COARSE) == tick:
            return made
    raise AssertionError(f"not once in {TRIES} times within a tick of the clock")


# -- verifying -----------------------------------------------------------


def test_the_same_bytes_are_accepted_without_being_looked_up(kernel, bare):
    packet = wire_setup.stamper().stamp(bare)

    def work():
        kernel.fresh_verifier()
        first = kernel.verify(packet, NOW)
        kernel.forget_pairs(turn=False)
        return first, kernel.verify(packet, NOW)

    first, again = in_one_tick(work)
    assert first.counts == again.counts == {"accepted": 1}
    assert (again.packet, again.action, again.mark) == (first.packet, first.action, first.mark)
    assert first.packet == bare
    assert [len(first.events), len(again.events)] == [1, 0]
    next_tick()
    assert kernel.verify(packet, None).counts == {"offload_declined": 1}


def test_no_other_bytes_are(kernel, bare):
    """Each bit of the scent, and of what its tag covers, right behind the packet that was accepted."""
    packet = wire_setup.stamper().stamp(bare)
    found = ip.parse(packet)
    scent = range(found.scent_at + 2, found.scent_at + layout.LEN)  # without its magic the packet has none
    ports = range(found.transport_at, found.transport_at + 4)
    at = 12 if found.version == 4 else 8
    source = range(at, at + len(found.source))
    for byte in (*scent, *ports, *source):
        bit = 1 << byte % 8
        other = packet[:byte] + bytes((packet[byte] ^ bit,)) + packet[byte + 1 :]
        kernel.fresh_verifier()
        assert kernel.verify(packet, NOW).counts == {"accepted": 1}
        counts = kernel.verify(other, NOW).counts
        assert counts, f"byte {byte}"
        assert not set(counts) & {"accepted", "accepted:drop"}, f"byte {byte}: {counts}"


def test_another_protocol_is_not(kernel):
    packet = wire_setup.stamper().stamp(bytes(ip6() / udp()))
    other = bytearray(packet)
    other[40] = 136  # UDP-Lite, the same ports
    kernel.fresh_verifier()
    assert kernel.verify(packet, NOW).counts == {"accepted": 1}
    assert kernel.verify(bytes(other), NOW).counts == {"bad-tag:drop": 1}


def test_a_portless_scent_stays_bound_to_long_packets(kernel):
    """A datagram of over 1280 bytes may have no ports in its tag; a short one of the same flow may not."""
    stamper = wire_setup.stamper()
    stamper.configure(replace(wire_setup.STAMP_TABLE, limits=(("198.51.100.0/24", 1400),)))
    long = stamper.stamp(bytes(ip4(flags=0) / udp() / raw(1380)))
    short = carriers.insert(plain := bytes(ip4(flags=0) / udp() / raw(10)), ip.parse(plain), scent_of(long))
    kernel.fresh_verifier()
    assert kernel.verify(long, NOW).counts == {"accepted": 1}
    assert kernel.verify(short, NOW).counts == {"wrong-binding:drop": 1}
    assert kernel.verify(long, NOW).counts == {"accepted": 1}


def test_routers_errors_are_the_queues_all_the_same(kernel):
    """An echo and a "too big" have equal scents: neither has ports."""
    echo = wire_setup.stamper().stamp(bytes(ip4() / ICMP()))
    plain = bytearray(carriers.remove(echo, ip.parse(echo)))
    plain[20:22] = bytes((3, 4))
    error = carriers.insert(bytes(plain), ip.parse(bytes(plain)), scent_of(echo))
    kernel.fresh_verifier()
    assert kernel.verify(echo, NOW).counts == {"accepted": 1}
    assert kernel.verify(error, NOW).counts == {"offload_declined": 1}


def test_time_goes_on(kernel, bare):
    packet = wire_setup.stamper().stamp(bare)
    kernel.fresh_verifier()
    assert kernel.verify(packet, NOW).counts == {"accepted": 1}
    assert kernel.verify(packet, NOW + 3600).counts == {"stale:drop": 1}
    assert kernel.verify(packet, NOW).counts == {"accepted": 1}


def test_a_beacon_is_consumed_each_time(kernel):
    plain = bytes(ip4() / udp(dport=layout.BEACON_PORT))
    found = ip.parse(plain)
    beacon = carriers.insert(plain, found, build_scent(wire_setup.outgoing()[0], found, 0, flags=layout.FLAG_BEACON))
    kernel.fresh_verifier()
    assert [kernel.verify(beacon, NOW).counts for _ in range(3)] == [{"accepted:drop": 1}] * 3


def scent_of(packet):
    at = ip.parse(packet).scent_at
    return packet[at : at + layout.LEN]


def test_flows_that_share_a_place_are_told_apart(kernel):
    """2000 flows, right and wrong tags mixed, over 1024 places."""
    rng = Random(7)  # noqa: S311 - the same packets each time
    stamper, flows = wire_setup.stamper(), []
    for _ in range(2000):
        family = rng.choice((ip4, ip6))
        flows.append(stamper.stamp(bytes(family() / udp(sport=rng.randrange(1, 65536), dport=rng.choice((53, 443))))))
    kernel.fresh_verifier()
    for _ in range(6000):
        packet = rng.choice(flows)
        if rng.random() < 0.5:
            assert kernel.verify(packet, NOW).counts == {"accepted": 1}
        else:
            found = ip.parse(packet)
            other = scent_of(rng.choice([f for f in flows[:100] if f[0] >> 4 == found.version and f != packet]))
            mixed = packet[: found.scent_at] + other + packet[found.scent_at + layout.LEN :]
            assert kernel.verify(mixed, NOW).counts == {"bad-tag:drop": 1}


def place(packet):
    """recent_index() of packet.h."""
    found = ip.parse(packet)
    words = [int.from_bytes(part, "little") for a in (found.source, found.destination) for part in (a[:8], a[8:])]
    ports = int.from_bytes(found.ports, "little")
    mixed = (words[0] ^ words[1] * 3) + (words[2] ^ words[3] * 5) & 2**64 - 1 ^ (ports << 32 | ports)
    return (mixed * 0x9E3779B97F4A7C15 & 2**64 - 1) >> 54


@pytest.mark.parametrize("at", [12, 20, 28, 36], ids=["source", "source's host", "destination", "destination's host"])
def test_addresses_that_share_a_place_are_told_apart(kernel, at):
    """The scent of one address on a packet of another, right behind it, where both are remembered in one place."""
    wide = replace(wire_setup.incoming("alice", "bob"), network=("2001:db8::/32",), peer=("2001:db8::/32",))
    kernel.verify_by(replace(wire_setup.VERIFY_TABLE, incoming=(wide,)))
    everybody = replace(wire_setup.STAMP_TABLE, networks=(("::/0", 0),), peers=(("::/0", 0),), limits=())
    stamper, base, rng, there = wire_setup.stamper(table=everybody), bytes(ip6() / udp()), Random(9), {}  # noqa: S311
    for _ in range(1000):
        plain = base[:at] + rng.randbytes(4) + base[at + 4 :]
        there.setdefault(place(plain), []).append(plain)
    shared = [same[:2] for same in there.values() if len(same) > 1]
    assert len(shared) > 100
    for one, other in shared[:20]:
        stamped = stamper.stamp(one)
        mixed = carriers.insert(other, ip.parse(other), scent_of(stamped))
        kernel.fresh_verifier()
        assert kernel.verify(stamped, NOW).counts == {"accepted": 1}
        assert kernel.verify(mixed, NOW).counts == {"bad-tag:drop": 1}
    kernel.verify_by()


# -- stamping ------------------------------------------------------------


def indexes(packets):
    return [scent_of(p)[12] >> 4 for p in packets]


def test_the_first_ten_packets_of_an_epoch_take_the_ten_fragments(kernel, bare):
    def work():
        kernel.fresh_stamper()
        return [kernel.stamp(bare).packet for _ in range(30)]

    made = in_one_tick(work)
    assert indexes(made[:10]) == list(range(10))
    assert len(set(made[10:])) == 1
    verified = wire_setup.verifier(NOW)
    assert [verified.verify(p) for p in made] == [verified.verify(wire_setup.stamper().stamp(bare))] * 30


def test_rounds_of_runs_begin_at_changing_fragments(kernel):
    """Any nineteen runs carry all ten, and so do those that every second and every tenth packet sees."""
    kernel.stamp_by(run_ns=0)
    kernel.fresh_stamper()
    packets = [bytes(ip4() / udp(sport=1024 + n)) for n in range(2200)]  # of a known flow the scent stays for a tick
    made = indexes(kernel.stamp(p).packet for p in packets)
    kernel.stamp_by()
    assert all(len(set(made[at : at + 19])) == 10 for at in range(10, len(made) - 18))
    for rhythm in (2, 10):
        assert all(len(set(made[at::rhythm])) == 10 for at in range(rhythm))


def test_each_flow_has_a_tag_of_its_own(kernel):
    kernel.fresh_stamper()
    rng = Random(8)  # noqa: S311 - the same packets each time
    one = wire_setup.verifier(NOW)
    flows = [bytes(rng.choice((ip4, ip6))() / udp(sport=rng.randrange(1, 65536))) for _ in range(2000)]
    for _ in range(6000):
        plain = rng.choice(flows)
        ran = kernel.stamp(plain)
        assert ran.counts == {"stamped": 1}
        assert isinstance(one.verify(ran.packet), bytes)


def test_each_packet_is_measured(kernel):
    """A flow's short packets are stamped, its long ones are not, in any order and in one tick."""
    kernel.stamp_by(narrow())
    kernel.fresh_stamper()
    short, long = (bytes(ip4() / udp() / raw(size)) for size in (100, 1372))
    made = [kernel.stamp(p).counts for p in (short, long, short, long, short)]
    kernel.stamp_by()
    assert made == [{"stamped": 1}, {"unstamped:too-big": 1}] * 2 + [{"stamped": 1}]


def narrow() -> StampTable:
    return replace(wire_setup.STAMP_TABLE, limits=(("198.51.100.0/24", 1400),))


def test_a_profile_that_has_expired_is_not_sent_on(kernel, bare):
    kernel.fresh_stamper()
    for _ in range(12):
        assert kernel.stamp(bare).counts == {"stamped": 1}
    kernel.expired_stamper()
    next_tick()
    assert kernel.stamp(bare).counts == {"unstamped:no-profile": 1}
