"""Thousands of changed packets through the programs and through the Python that they stand in for.

Whatever the programs decide Python decides alike, byte for byte; and what has none but our option or header they
decide. What they leave they leave as it was, without a mark, for the queue.

Python is given what the queue would be given: the packet as long as it says, for the kernel cuts what is behind.
"""

from __future__ import annotations

import json
from random import Random

import carriers
import pytest
import wire_setup
from bpf_programs import IPV4, IPV6, MARKS, SHOT, UNSPEC, Kernel
from hosts import ROOT
from mutations import changed
from packet_vectors import C4, F6, ip4, ip6, tcp, udp
from rejected_vectors import insert

from scentd.core.packet import quote
from scentd.wire import ip, layout, maps

pytestmark = pytest.mark.netns

PACKETS = 10_000
NOW = wire_setup.NOW + 0.5  # half a second from all limits: a tick of the clock more or less is nothing
KINDS = {4: IPV4, 6: IPV6}
LEAST = {4: 20, 6: 40}  # a test run refuses shorter ones
ACTIONS = {"drop": (SHOT, 0), "reject": (SHOT, 0), "pass": (UNSPEC, MARKS.verified)}


def vectors():
    """Every packet of the vectors."""
    directory = ROOT / "tests" / "vectors"
    found = []
    for file in ("packets.json", "rejected.json"):
        for rows in json.loads((directory / file).read_text()).values():
            for row in rows if isinstance(rows, list) else ():
                found += [row.get(key) for key in ("before", "packet", "stamped")]
    return sorted({bytes.fromhex(text) for text in found if isinstance(text, str)})


BASES = [packet for packet in vectors() if packet and packet[0] >> 4 in LEAST]


@pytest.fixture(scope="module")
def kernel():
    kernel = Kernel()
    kernel.stamp_by()
    kernel.verify_by()
    kernel.fresh_stamper()
    kernel.fresh_verifier()
    yield kernel
    kernel.close()


def mutants(seed):
    """(IP version of the frame, packet)."""
    for base, packet in changed(seed, PACKETS, BASES):
        version = base[0] >> 4
        if len(packet) >= LEAST[version]:
            yield version, packet


def delivered(version, packet):
    """What the kernel would hand on, if all of it is there."""
    stated = int.from_bytes(packet[2:4], "big") if version == 4 else 40 + int.from_bytes(packet[4:6], "big")
    return packet[:stated]


def is_plain(version, packet, found):
    """Whether the programs have to know it: nothing beside our option or header but one Fragment header."""
    if found.malformed or found.version != version:
        return False
    if version == 4:
        return (found.transport_at, found.scent_at) in ((20, 0), (56, 22))
    start = 80 if found.scent_at == 44 else 40
    if found.scent_at not in (0, 44):
        return False
    first = packet[start - 40 if start == 80 else 6]
    return found.transport_at == start or (found.transport_at == start + 8 and first == ip.FRAGMENT)


def is_neighbourly(packet, found):
    """Neighbour discovery and multicast listening as neighbours send them."""
    kind = packet[found.transport_at] if found.transport_at + 4 <= len(packet) else 0
    if found.version != 6 or found.protocol != quote.ICMPV6 or found.fragment:
        return False
    return (packet[7] == 255 and kind in range(133, 138)) or (packet[7] == 1 and kind in (130, 131, 132, 143))


def is_declined(packet, found):
    """Plain, and yet the queue's: a router's error about ours. The program does not see that one was cut short."""
    return quote.is_too_big(packet.ljust(found.transport_at + 8, b"\0"), found)


def is_whole(packet):
    """Whether the checksum of its IPv4 header is right; IPv6 has none."""
    return packet[0] >> 4 == 6 or ip.word_sum(packet[: (packet[0] & 15) * 4]) == 0xFFFF


def same(made, wanted, given):
    """A header that came damaged goes damaged, where Python makes it right: the kernel drops it before a queue."""
    if is_whole(given):
        return made == wanted
    return made[:10] + made[12:] == wanted[:10] + wanted[12:] and not is_whole(made)


# -- verifying -----------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_verdicts_are_pythons(kernel, seed):
    one, seen = wire_setup.verifier(NOW), set()
    for version, packet in mutants(seed):
        given = delivered(version, packet)
        found, before = ip.parse(given), kernel.of_pairs()
        ran = kernel.verify(packet, NOW, kind=KINDS[version])
        outcome, moved = one.verify(given), dict(kernel.of_pairs() - before)
        seen.update(ran.counts or {"": 1})
        context = f"{packet.hex()}: {ran.counts}, Python: {outcome}"
        if ran.counts in ({}, {"offload_declined": 1}):
            assert (ran.packet, ran.action, ran.mark, ran.events) == (packet, UNSPEC, 0, []), context
            if is_plain(version, given, found):
                assert may_leave(given, found) if not ran.counts else is_declined(given, found), context
        elif ran.counts == {"absent:drop": 1} and not is_plain(version, given, found):
            assert int.from_bytes(given[6:8], "big") & 0x3FFF, f"not a part of a packet: {context}"
            assert (ran.packet, ran.action, ran.events) == (packet, SHOT, []), context
            one = wire_setup.verifier(NOW)
        else:
            assert found.version == version, context
            assert_decided(ran, packet, given, found, outcome, context)
            assert moved == counted(outcome, one), context
        if isinstance(outcome, bytes) or outcome.verdict == layout.VERDICT_ACCEPTED:
            assert [e.kind for e in ran.events] == ([maps.EVENT_EPOCH] if ran.counts in ACCEPTED else []), context
            if ran.events:
                assert ran.events[0][1:6] == fragment(one.events[0]), context
                assert kernel.nodes().get(one.events[0].pair, {found.source}) == {found.source}, context
            one = wire_setup.verifier(NOW)
            kernel.fresh_verifier(forget=False)
    assert {"", "offload_declined", "accepted", "accepted:drop", *REACHED} <= seen


ACCEPTED = ({"accepted": 1}, {"accepted:drop": 1})
REACHED = {f"{v}:drop" for v in layout.VERDICTS.values() if v not in ("accepted", "replayed-epoch")}


def counted(outcome, one):
    """By pair, one packet."""
    if isinstance(outcome, bytes) or outcome.verdict == layout.VERDICT_ACCEPTED:
        return {(pair, "accepted"): packets for pair, packets in one.drain_accepted().items()}
    named = (outcome.pair, f"{layout.VERDICTS[outcome.verdict]}:{outcome.treatment}")
    return {} if outcome.pair == maps.NO_PAIR else {named: 1}


def fragment(event):
    return event.pair, event.epoch, event.load, event.threat, event.source


def may_leave(given, found):
    """For nobody of ours, or without a scent from one who need not have one."""
    if wire_setup.owner(found.destination) not in ("bob", "frank"):
        return True
    expected = wire_setup.owner(found.source) in ("alice", "carol") and not is_neighbourly(given, found)
    return not found.scent_at and not expected


def assert_decided(ran, packet, given, found, outcome, context):
    if isinstance(outcome, bytes):
        assert ran.counts == {"accepted": 1}, context
        assert same(ran.packet, carriers.remove(given, found) + packet[len(given) :], packet), context
        assert (ran.action, ran.mark) == (UNSPEC, MARKS.verified), context
    else:
        verdict = f"{layout.VERDICTS[outcome.verdict]}:{outcome.treatment}"
        assert ran.counts == {verdict: 1}, context
        assert (ran.action, ran.mark) == ACTIONS[outcome.treatment], context
        assert ran.packet == packet, context


def test_epochs_are_judged_as_python_judges_them(kernel):
    """Authentic packets of epochs around each other, of three pairs, at times that go to and fro."""
    rng = Random(3)  # noqa: S311 - the same packets each time
    epochs = [wire_setup.EPOCH + ahead for ahead in (-20, -11, -10, -6, -5, -4, 0, 1, 5)]
    packets = [
        insert(packet, sender, receiver, epoch=epoch, index=index, flags=flags)
        for packet, sender, receiver, flags in (
            (ip4() / tcp(), "alice", "bob", layout.FLAG_PORTS),
            (ip6(dst=F6) / udp(), "alice", "frank", layout.FLAG_PORTS),
            (ip4(src=C4) / tcp(), "carol", "bob", layout.FLAG_SENDER),
        )
        for epoch in epochs
        for index in (0, 7)
    ]
    counts = set()
    for _ in range(150):
        now, sequence = NOW, []
        for _ in range(12):
            now += rng.choice((-3, -1, 0, 0, 0, 1, 1, 2))
            sequence.append((rng.choice(packets), now))
        assert_same_history(kernel, sequence, counts)
    assert {"accepted", "replayed-epoch:drop", "replayed-epoch:reject"} <= counts


def assert_same_history(kernel, sequence, counts):
    one = wire_setup.verifier(NOW)
    told: dict[tuple[int, int], int] = {}
    ran = kernel.verify_all(sequence)
    for (packet, now), made in zip(sequence, ran, strict=True):
        one.tick(now)
        outcome = one.verify(packet)
        noticed = made.counts.pop("duplicate_issuer", 0)
        assert noticed == sum(one.drain_duplicates().values()), packet.hex()
        assert_decided(made, packet, packet, ip.parse(packet), outcome, f"{packet.hex()} at {now}: {outcome}")
        counts.update(made.counts)
    for event in one.events:
        told[event.pair, event.epoch] = told.get((event.pair, event.epoch), 0) | 1 << event.index
    assert [(e.pair, e.epoch) for made in ran for e in made.events] == list(told)
    newest = {pair: (epoch, seen) for (pair, epoch), seen in sorted(told.items())}
    assert {pair: (s.highest, s.seen) for pair, s in kernel.states().items() if s.highest} == newest


# -- stamping ------------------------------------------------------------


@pytest.mark.parametrize("seed", [4, 5])
def test_scents_are_pythons(kernel, seed):
    one, sent, seen = wire_setup.stamper(now=NOW), wire_setup.outgoing(), set()
    for version, packet in mutants(seed):
        given = delivered(version, packet)
        found = ip.parse(given)
        ran = kernel.stamp(packet, kind=KINDS[version])
        one.update(sent)  # each packet takes the first fragment
        made = one.stamp(given)
        seen.update(ran.counts or {"": 1})
        context = f"{packet.hex()}: {ran.counts}, Python: {made}"
        assert (ran.action, ran.mark) == (UNSPEC, 0), context
        if ran.counts == {"stamped": 1}:
            assert found.version == version, context
            assert isinstance(made, bytes), context
            assert same(ran.packet, made + packet[len(given) :], packet), context
            kernel.fresh_stamper()
        else:
            assert ran.packet == packet, context
            if found.version == version:
                wanted = stamper_counts(packet, given, found, made, one.limit(found.destination))
                assert ran.counts == wanted or (not ran.counts and begins_with_ours(given)), context
    assert {"", "stamped", *LEFT} <= seen


def begins_with_ours(packet):
    """If all else is plain, that is enough of a scent for the program to leave a packet alone."""
    if packet[0] >> 4 == 4:
        return packet[0] == 0x4E and packet[20:24] == b"\x9e\x24\x5c\xe7"
    return packet[6] == ip.DESTINATION and packet[41:46] == b"\x04\x1e\x22\x5c\xe7"


NOT_HERE = {"not-a-peer", "already", "masqueraded", "translated", "tunnelled"}
LEFT = {f"unstamped:{reason}" for reason in layout.UNSTAMPED.values() if reason not in NOT_HERE}


def stamper_counts(packet, given, found, made, limit):
    """What the program counts of a packet that it left."""
    if made == layout.UNSTAMPED_MALFORMED:  # Python has looked at no address yet, the program at no more than these
        source, destination = (packet[12:16], packet[16:20]) if found.version == 4 else (packet[8:24], packet[24:40])
        ours = (wire_setup.owner(source), wire_setup.owner(destination)) in wire_setup.PAIRS
        return {"unstamped:malformed": 1} if ours else {}
    if made in (layout.UNSTAMPED_NOT_A_PEER, layout.UNSTAMPED_ALREADY) or is_neighbourly(given, found):
        return {}
    if isinstance(made, bytes):  # and Python's is fragmented behind it
        assert len(made) > limit
        return {"unstamped:too-big": 1}
    return {f"unstamped:{layout.UNSTAMPED[made]}": 1}
