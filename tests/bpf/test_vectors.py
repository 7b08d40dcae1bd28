"""Every vector through the programs: the same bytes and verdicts as Python's, or a line in a table that says why not.

What a table has for a vector is the counter that moves instead, None where none does, and the reason.
"""

from __future__ import annotations

import json
from functools import cache

import carriers
import pytest
import wire_setup
from bpf_programs import MARKS, SHOT, UNSPEC, Kernel
from hosts import ROOT

from scentd.wire import ip, layout, maps

pytestmark = pytest.mark.netns

DECLINED = "offload_declined"
OPTIONS = DECLINED, "IPv4 options beside ours: the queue's"
HEADERS = DECLINED, "IPv6 extension headers beside ours and Fragment: the queue's"
LENGTHS = DECLINED, "lengths that do not fit: the kernel's, or the queue's"
UNFRAGMENTED = "unstamped:too-big", "nobody fragments behind this hook"
STRANGERS = None, "neither counted nor looked at further: most packets of a host are not for peers"
PADDED = "accepted", "the kernel cuts what is behind the packet off; at this hook short frames still have it"

STAMPED_ELSEWISE = {
    "udp4 max portless": UNFRAGMENTED,
    "udp6 portless": UNFRAGMENTED,
}

UNSTAMPED_ELSEWISE = {
    "not our network": STRANGERS,
    "not a peer": STRANGERS,
    "no such pair": STRANGERS,
    "already4": (None, "what the queue has stamped is not counted twice"),
    "already6": (None, "what the queue has stamped is not counted twice"),
}

VERIFIED_ELSEWISE = {
    **dict.fromkeys(("options4 room", "foreign 158"), OPTIONS),
    **dict.fromkeys((
        "hop by hop", "own destination options", "foreign 0x1e", "hop by hop and destination",
    ), HEADERS),
    **dict.fromkeys((
        "empty option4", "half magic4", "foreign magic4", "behind the end4", "inside another4", "option length 0",
        "option overruns", "option cut", "short scent4", "long scent4", "scent and stump4", "source routed scent",
    ), OPTIONS),
    **dict.fromkeys((
        "foreign magic6", "short foreign6", "in hop by hop", "inside another6", "in a routing header",
        "foreign in the fragment", "seven bytes of padding", "eight options", "no header6", "option overruns6",
        "option cut6", "short scent6", "scent of 33 bytes", "padded with Pad1", "padding is an option",
        "padding first", "nested", "nested last", "two scents6", "second header", "behind the fragment header",
        "in a first fragment", "pad1 in a row", "padn too long", "padding behind the scent", "nine options",
        "with a routing header", "behind a routing header", "hop by hop behind", "nine headers", "eight headers",
    ), HEADERS),
    **dict.fromkeys((
        "version 5", "one byte short4", "one byte short6", "header of 16 bytes", "long header", "header overruns6",
    ), LENGTHS),
    "one byte more4": PADDED,
    "one byte more6": PADDED,
    "wrong destination": (None, "to no address of our networks: the queue's rules decide whether it is judged"),
}  # fmt: skip
NOT_RUN = {"empty": "the kernel makes no frame without an IP header"}


@cache
def load(file):
    return json.loads((ROOT / "tests" / "vectors" / file).read_text())


def named(file, kind):
    vectors = [v for v in load(file)[kind] if v["name"] not in NOT_RUN]
    return pytest.mark.parametrize("vector", vectors, ids=lambda v: v["name"])


@pytest.fixture(scope="module")
def loaded():
    kernel = Kernel()
    kernel.stamp_by()
    kernel.verify_by()
    yield kernel
    kernel.close()


@pytest.fixture
def kernel(loaded):
    loaded.fresh_stamper()
    loaded.fresh_verifier()
    return loaded


def test_tables_name_vectors():
    packets, rejected = load("packets.json"), {v["name"] for v in load("rejected.json")["packets"]}
    stamped = {v["name"] for v in packets["stamped"]}
    assert set(STAMPED_ELSEWISE) <= stamped
    assert set(UNSTAMPED_ELSEWISE) <= {v["name"] for v in packets["unstamped"]}
    assert {*VERIFIED_ELSEWISE, *NOT_RUN} <= stamped | rejected
    assert not set(VERIFIED_ELSEWISE) & stamped & rejected


def counted(name):
    return {} if name is None else {name: 1}


def fragment(event):
    """What an event and Python's have in common."""
    return event.pair, event.epoch, event.load, event.threat, event.source


# -- stamping ------------------------------------------------------------


@named("packets.json", "stamped")
def test_stamped(kernel, vector):
    before = bytes.fromhex(vector["before"])
    instead, _ = STAMPED_ELSEWISE.get(vector["name"], ("stamped", ""))
    ran = kernel.stamp(before)
    assert ran.counts == counted(instead)
    assert ran.packet.hex() == (vector["stamped"] if instead == "stamped" else vector["before"])
    assert (ran.action, ran.mark) == (UNSPEC, 0)


@named("packets.json", "unstamped")
def test_unstamped(kernel, vector):
    instead, _ = UNSTAMPED_ELSEWISE.get(vector["name"], (f"unstamped:{vector['reason']}", ""))
    ran = kernel.stamp(bytes.fromhex(vector["packet"]))
    assert ran.counts == counted(instead)
    assert ran.packet.hex() == vector["packet"]
    assert (ran.action, ran.mark) == (UNSPEC, 0)


@named("packets.json", "flows")
def test_flow(kernel, vector):
    """The first ten packets take the ten fragments; then one serves for a run."""
    before = bytes.fromhex(vector["before"])
    assert [kernel.stamp(before).packet.hex() for _ in vector["stamped"]] == vector["stamped"]


@named("rejected.json", "packets")
def test_the_stamper_does_not_touch_what_has_our_option_or_is_malformed(kernel, vector):
    packet = bytes.fromhex(vector["packet"])
    made = wire_setup.stamper().stamp(packet)
    ran = kernel.stamp(packet)
    if ran.packet != packet:
        assert ran.counts == {"stamped": 1}
        assert ran.packet == made
    assert ran.action == UNSPEC


# -- verifying -----------------------------------------------------------


@named("packets.json", "stamped")
def test_verified(kernel, vector):
    packet = bytes.fromhex(vector["stamped"])
    [ran] = kernel.verify_all([(packet, wire_setup.NOW)])
    if vector["name"] in VERIFIED_ELSEWISE:
        assert_left_alone(kernel, ran, packet, VERIFIED_ELSEWISE[vector["name"]][0])
        return
    one = wire_setup.verifier()
    one.verify(packet)
    assert ran.counts == {"accepted": 1}
    assert ran.packet.hex() == vector["removed"] == vector["before"]
    assert (ran.action, ran.mark) == (UNSPEC, MARKS.verified)
    assert [e.kind for e in ran.events] == [maps.EVENT_EPOCH]
    assert_same_memory(kernel, ran.events, one)


@named("packets.json", "beacons")
def test_beacons_are_consumed(kernel, vector):
    packet = bytes.fromhex(vector["stamped"])
    [ran] = kernel.verify_all([(packet, wire_setup.NOW)])
    one = wire_setup.verifier()
    one.verify(packet)
    assert (ran.action, ran.counts) == (SHOT, {"accepted:drop": 1})
    assert_same_memory(kernel, ran.events, one)


@named("packets.json", "flows")
def test_a_flow_makes_a_profile(kernel, vector):
    """Told at the first packet that there is a new epoch, at the tenth what its profile is, and no more."""
    ran = kernel.verify_all([(bytes.fromhex(packet), wire_setup.NOW) for packet in vector["stamped"]])
    assert {r.packet.hex() for r in ran} == {vector["before"]}
    out = wire_setup.outgoing()[0]
    wanted = [[maps.EVENT_EPOCH], *[[]] * 8, [maps.EVENT_PROFILE], [], []]
    assert [[e.kind for e in r.events] for r in ran] == wanted
    assert ran[9].events[0].sealed == b"".join(out.fragments)
    assert (ran[9].events[0].pair, ran[9].events[0].epoch) == (0, out.epoch)
    state = kernel.states()[0]
    assert (state.highest, state.seen, state.sealed) == (out.epoch, 0x3FF, b"".join(out.fragments))


@named("rejected.json", "packets")
def test_rejected(kernel, vector):
    packets = [(bytes.fromhex(v["packet"]), v["now"]) for v in (*vector["before"], vector)]
    packet, _ = packets[-1]
    lag = vector.get("lag", 0)
    *earlier, ran = kernel.verify_all(packets, lag)
    accepted = vector["verdict"] == "accepted"
    instead, _ = VERIFIED_ELSEWISE.get(vector["name"], ("accepted" if accepted else verdict(vector), ""))
    if instead in (None, DECLINED):
        assert_left_alone(kernel, ran, packet, instead)
        return
    assert ran.counts == counted(instead)
    one = wire_setup.verifier(lag=lag)
    for before, now in packets:
        one.tick(now)
        outcome = one.verify(before[: stated_length(before)])
    if instead == "accepted":
        assert (ran.action, ran.mark) == (UNSPEC, MARKS.verified)
        assert ran.packet == without_scent(packet)
        assert isinstance(outcome, bytes)
    else:
        passed = vector["treatment"] == "pass"
        assert (ran.action, ran.mark) == ((UNSPEC, MARKS.verified) if passed else (SHOT, 0))
        assert ran.packet == packet
        assert ran.events == []
        for told in ran.refused:  # a few in a tick of the clock
            assert vector["treatment"] == "reject"
            assert told[:2] == (packet[: maps.REFUSED_LEN], stated_length(packet))
    assert_same_memory(kernel, [event for r in (*earlier, ran) for event in r.events], one)


def verdict(vector):
    return f"{vector['verdict']}:{vector['treatment']}"


def stated_length(packet):
    return int.from_bytes(packet[2:4], "big") if packet[0] >> 4 == 4 else 40 + int.from_bytes(packet[4:6], "big")


def without_scent(packet):
    """The packet as it was before, and what is behind it."""
    end = stated_length(packet)
    return carriers.remove(packet[:end], ip.parse(packet[:end])) + packet[end:]


def assert_left_alone(kernel, ran, packet, counter):
    assert ran.counts == counted(counter)
    assert (ran.action, ran.mark, ran.packet, ran.events) == (UNSPEC, 0, packet, [])
    assert kernel.nodes() == {}
    assert {state.seen for state in kernel.states().values()} == {0}


def assert_same_memory(kernel, events, one):
    """Python tells each fragment, the program the first of an epoch, and the rest when all are there."""
    epochs: dict[tuple[int, int], int] = {}
    firsts = []
    for event in one.events:
        if (event.pair, event.epoch) not in epochs:
            firsts.append(fragment(event))
        epochs[event.pair, event.epoch] = epochs.get((event.pair, event.epoch), 0) | 1 << event.index
    assert [fragment(e) for e in events if e.kind == maps.EVENT_EPOCH] == firsts
    newest = {pair: (epoch, seen) for (pair, epoch), seen in sorted(epochs.items())}
    assert {p: (s.highest, s.seen) for p, s in kernel.states().items() if s.highest} == newest
    for event in one.events:
        if newest[event.pair][0] == event.epoch:
            at = layout.FRAGMENT_LEN * event.index
            assert kernel.states()[event.pair].sealed[at : at + layout.FRAGMENT_LEN] == event.data
    assert kernel.nodes() == {pair: set(nodes) for pair, nodes in one.drain_nodes().items()}
