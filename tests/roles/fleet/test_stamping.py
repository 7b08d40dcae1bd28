"""What goes from a profiler to a stamper, and from a profiler to its twin.

A list stands for NATS here; the real one is in tests/bus and tests/netns.
"""

import asyncio
import time
from collections import Counter

import pytest
from msgspec.structs import replace

from scentd.config.bus import Bus, BusHost
from scentd.core.fleet.lease import Lease, LeaseRecord
from scentd.core.pairs import Pairs
from scentd.core.profile.issue import Issuer, metric_slots
from scentd.kinds import config_from
from scentd.model import IssuedEpoch, Statement
from scentd.roles.fleet.post import Post
from scentd.roles.fleet.signing import OutgoingSender, TwinWatch
from scentd.roles.fleet.stamping import FORGET, OutgoingTaker
from scentd.system.clock import steady
from scentd.wire import keys

NET, PEER, PROFILER, GATE, EVE = (keys.identity(bytes((n,)) * 32) for n in range(1, 6))
PEERS = [{"name": "peer", "public_key": str(PEER.public), "addresses": ["10.2.0.0/16"]}]
STATEMENT = Statement(5, 0.5, {"cpu": 0.9}, frozenset())


class Wire:
    """In the place of NATS: what was sent, by subject."""

    def __init__(self):
        self.sent: list[tuple[str, bytes]] = []

    def send(self, subject: str, data: bytes) -> bool:
        self.sent.append((subject, data))
        return True


def post(name: str, identity, **hosts) -> Post:
    made = Post(name, identity, Counter())
    made.configure(Bus(host=[BusHost(n, str(i.public), [duty]) for n, (i, duty) in hosts.items()]))
    return made


class Profiler:
    def __init__(self, term: int = 7, instance: str = "one", networks: int = 1):
        names = [f"n{n}" for n in range(networks)]
        config = config_from(
            {
                "network": [
                    {"name": name, "key_file": "k", "sign": True, "stamp": False, "addresses": [f"10.1.{i}.0/24"]}
                    for i, name in enumerate(names)
                ],
                "peer": PEERS,
            }
        )
        numbers = {(name, "peer"): i for i, name in enumerate(names)}
        self.pairs = Pairs(config, dict.fromkeys(names, (NET,)), numbers)
        self.post = post("profiler", PROFILER, gate=(GATE, "stamp"))
        self.wire = Wire()
        self.lease = Lease(instance, 1.0)
        self.lease.wrote(LeaseRecord(instance, term, 1.0), 1, steady(), steady())
        self.sender = OutgoingSender(self.post, self.wire, self.lease)
        self.sender.configure(self.pairs)

    def issue(self, epoch: int, network: str = "n0", alarm: bool = False):
        issuer = Issuer(NET, self.pairs.issued_pairs(network), metric_slots({}))
        self.sender.take(IssuedEpoch(network, epoch, 5.0, alarm, tuple(issuer.issue(STATEMENT, epoch))))


class Gate:
    def __init__(self, public=NET.public, networks=("n0",)):
        self.taken: list[IssuedEpoch] = []
        self.post = post("gate", GATE, profiler=(PROFILER, "sign"))
        self.taker = OutgoingTaker(self.post, self.taken.append)
        section = {"stamp": True, "public_key": str(public)}
        many = [section | {"name": n, "addresses": [f"10.1.{i}.0/24"]} for i, n in enumerate(networks)]
        self.taker.configure(config_from({"network": many, "peer": PEERS, "bus": BUS}), ())

    def take(self, wire: Wire):
        for _, message in wire.sent:
            self.taker.take(message)
        return +self.post.counters


BUS = {
    "url": ["nats://h:1"],
    "name": "gate",
    "key_file": "k",
    "host": [{"name": "profiler", "public_key": str(PROFILER.public), "duties": ["sign"]}],
}


def issued(*epochs: int, **profiler) -> Wire:
    """What a profiler sends that issues these epochs of n0, each as an alarm."""

    async def run():
        made = Profiler(**profiler)
        for epoch in epochs:
            made.issue(epoch, alarm=True)
        return made.wire

    return asyncio.run(run())


@pytest.fixture
def now():
    return int(time.time())


def test_networks_that_issue_together_go_together(now):
    async def run():
        profiler = Profiler(networks=3)
        for network in ("n0", "n1", "n2"):
            profiler.issue(now, network)
        await asyncio.sleep(0.2)
        return profiler

    profiler = asyncio.run(run())
    assert [subject for subject, _ in profiler.wire.sent] == ["scentd.outgoing.gate.0"]
    gate = Gate(networks=("n0", "n1", "n2"))
    assert gate.take(profiler.wire) == {"taken": 1}
    assert [e.network for e in gate.taken] == ["n0", "n1", "n2"]


def test_an_alarm_does_not_wait_and_the_last_ones_stay_with_it(now):
    async def run():
        profiler = Profiler(networks=2)
        profiler.issue(now, "n0", alarm=True)
        profiler.issue(now, "n1", alarm=True)
        return profiler

    profiler = asyncio.run(run())
    assert [subject for subject, _ in profiler.wire.sent] == ["scentd.outgoing.gate.0.alarm"] * 2
    gate = Gate(networks=("n0", "n1"))
    gate.taker.take(profiler.wire.sent[-1][1])
    assert [(e.network, e.alarm) for e in gate.taken] == [("n0", True), ("n1", True)]


def test_an_epoch_is_taken_once_and_none_older(now):
    gate = Gate()
    assert gate.take(issued(now, now, now - 3, now + 1)) == {"taken": 4}
    assert [e.epoch for e in gate.taken] == [now, now + 1]


def test_of_two_profilers_the_one_with_the_newer_term_counts(now):
    gate = Gate()
    gate.take(issued(now, term=8))
    assert gate.take(issued(now + 5, term=7)) == {"taken": 1, "old_term": 1}
    assert [e.epoch for e in gate.taken] == [now]


def test_a_term_of_a_clock_that_was_wrong_is_forgotten(now, monkeypatch):
    gate = Gate()
    gate.take(issued(now, term=4_000_000_000))
    assert gate.take(issued(now + 5, term=7))["old_term"] == 1
    later = time.monotonic() + FORGET
    monkeypatch.setattr("scentd.roles.fleet.stamping.time.monotonic", lambda: later)
    gate.take(issued(now + 6, term=7))
    assert [e.epoch for e in gate.taken] == [now, now + 6]


def test_a_profile_of_another_key_is_not_stamped(now, caplog):
    gate = Gate(public=EVE.public)
    assert gate.take(issued(now)) == {"taken": 1, "wrong_profile": 1}
    assert not gate.taken
    assert "network.public_key" in caplog.text


def test_epochs_of_a_clock_that_was_wrong_mute_nobody(now):
    gate = Gate()
    assert gate.take(issued(now + 7200))["future"] == 1
    gate.take(issued(now))
    assert [e.epoch for e in gate.taken] == [now]


def test_a_recorded_batch_is_late(now, monkeypatch):
    wire = issued(now)
    later = time.time() + 61
    monkeypatch.setattr("scentd.roles.fleet.stamping.time.time", lambda: later)
    gate = Gate()
    assert gate.take(wire) == {"wrong_clock": 1}


def test_what_is_too_old_is_not_stamped(now):
    gate = Gate()
    assert gate.take(issued(now - 100)) == {"taken": 1, "expired": 1}
    assert not gate.taken


def test_networks_that_are_not_his_to_sign(now):
    async def run():
        profiler = Profiler(networks=2)
        profiler.issue(now, "n0", alarm=True)
        profiler.issue(now, "n1", alarm=True)
        return profiler.wire.sent[-1:]

    wire = Wire()
    wire.sent = asyncio.run(run())
    gate = Gate(networks=("n1",))
    gate.post.hosts["profiler"] = replace(gate.post.hosts["profiler"], networks=["other"])
    assert gate.take(wire) == {"taken": 1, "unknown_network": 1, "not_allowed": 1}


def test_a_twin_raises_the_epochs_and_the_older_lease_yields(now):
    message = issued(now, term=9, instance="two").sent[0][1]
    mine, raised, yielded = Profiler(term=7), [], []
    watch = TwinWatch(mine.post, mine.lease, lambda *epoch: raised.append(epoch), yielded.append)
    watch.take(message)
    assert raised == [("n0", now)]
    assert yielded == ["two"]
    assert mine.post.counters["second_profiler"] == 1
    assert not mine.lease.may_act(steady())
    newer = Profiler(term=11)
    TwinWatch(newer.post, newer.lease, lambda *_: None, yielded.append).take(message)
    assert newer.lease.may_act(steady())
    assert yielded == ["two"]


def test_what_a_twin_is_not(now):
    """Batches of other profilers, and garbage, are nobody's twin."""
    mine, yielded = Profiler(term=7), []
    watch = TwinWatch(mine.post, mine.lease, lambda *_: None, yielded.append)
    watch.take(b"garbage")
    stranger = post("profiler", EVE, gate=(GATE, "stamp"))
    sender = OutgoingSender(stranger, wire := Wire(), Lease("three", 1.0))
    sender.configure(mine.pairs)
    issuer = Issuer(NET, mine.pairs.issued_pairs("n0"), metric_slots({}))
    sender.take(IssuedEpoch("n0", now, 5.0, True, tuple(issuer.issue(STATEMENT, now))))
    watch.take(wire.sent[0][1])
    assert not yielded
