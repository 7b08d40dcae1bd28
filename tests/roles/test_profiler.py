"""When the profiler makes an epoch: when all its collectors have spoken, for an alarm at once, and at the latest."""

import asyncio
import itertools
import time

import pytest
from signer import INTERVAL, OWN, run

from scentd.config.node import Node
from scentd.core.profile.issue import NextEpoch
from scentd.model import Sample, Samples, SecurityEvent
from scentd.roles import profiler
from scentd.state.slots import issued_slot
from scentd.wire import keys

PAUSE = 0.05


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Several epochs in a second are always ahead of the clock, which holds a real profiler up."""
    monkeypatch.setattr(profiler, "ISSUE_PAUSE", PAUSE)
    monkeypatch.setattr(profiler.issue, "next_epoch", lambda now, issued, *_: NextEpoch(max(int(now), issued + 1)))


def test_an_epoch_comes_when_every_collector_has_said_something_new(tmp_path):
    async def story(signer):
        signer.say("one", 0.2)
        assert (await signer.next())["levels"]["cpu"] == pytest.approx(0.2)  # only one is known so far
        signer.say("two", 0.6)
        signer.say("one", 0.2)
        assert (await signer.next())["levels"]["cpu"] == pytest.approx(0.4)
        epochs = len(signer.issued)
        signer.say("one", 1.0)
        await asyncio.sleep(2 * PAUSE)
        assert len(signer.issued) == epochs, "it waits for the other"
        signer.say("two", 1.0)
        assert (await signer.next())["levels"]["cpu"] == pytest.approx(1.0)

    run(tmp_path, story, interval=3.0)


def test_a_late_collector_is_not_waited_for_longer_than_patience(tmp_path):
    async def story(signer):
        signer.say("one", 0.2)
        signer.say("two", 0.6)
        await signer.next()
        before, began = len(signer.issued), time.monotonic()
        signer.say("one", 0.2)  # two says nothing
        assert (await signer.next())["levels"]["cpu"] == pytest.approx(0.4)
        assert len(signer.issued) == before + 1
        assert time.monotonic() - began >= INTERVAL

    run(tmp_path, story)


def test_a_dead_collector_does_not_count_for_ever(tmp_path):
    async def story(signer):
        signer.say("dead", 1.0)
        end = time.monotonic() + 10
        while True:
            signer.say("alive", 0.2)
            levels = (await signer.next())["levels"]
            if levels["cpu"] == pytest.approx(0.2):
                break
            assert time.monotonic() < end

    run(tmp_path, story)


def test_an_alarm_is_told_at_once_and_to_everybody(tmp_path):
    async def story(signer):
        signer.say("one", 0.2)
        signer.say("two", 0.2)
        await signer.next()
        now = time.time()
        event = SecurityEvent("intrusion", 0.9, now, now + 60, "192.0.2.9")
        signer.say("one", 0.2, events=(event,), alarm=True)
        statement = await signer.next(seconds=2)
        assert statement["alarm"]
        assert statement["levels"]["threat"] == pytest.approx(0.9)
        assert signer.issued[-1][1].alarm

    run(tmp_path, story, interval=30.0)


def test_what_comes_late_and_out_of_order_is_left_out(tmp_path):
    async def story(signer):
        signer.say("one", 0.2)
        signer.say("one", 0.8, ago=0.1)
        assert (await signer.next())["levels"]["cpu"] == pytest.approx(0.2)

    run(tmp_path, story)


def test_without_any_collector_there_are_profiles_that_say_nothing(tmp_path):
    """A signer goes on when its collectors are gone: the peers see that nothing is known, and that it lives."""

    async def story(signer):
        statement = await signer.next()
        assert (statement["overall"], statement["levels"]) == (None, {})

    run(tmp_path, story)


def test_no_epoch_is_used_twice_and_each_is_written_first(tmp_path):
    async def story(signer):
        for _ in range(3):
            signer.say("one", 0.2)
            await signer.next()
            assert signer.epoch_file.epoch(issued_slot("n")) == signer.issued[-1][1].epoch
        numbers = [issued.epoch for _, issued in signer.issued]
        assert numbers == sorted(set(numbers))

    run(tmp_path, story)
    run(tmp_path, story)  # a signer that begins again goes on from what the file says


def test_new_keys_are_used_soon_and_not_at_once(tmp_path):
    """A receiver takes the newest epoch and the one before: a pause lies between any two, also over reloads."""

    async def story(signer):
        signer.say("one", 0.2)
        await signer.next()
        for secret in (b"\3", b"\4", b"\5"):
            identity = keys.identity(secret * 32)
            await signer.sign_by(identity)
            await signer.next(seconds=2)
            assert signer.issued[-1][1].outgoing[0].key_id == identity.public.key_id
        at = [at for at, _ in signer.issued]
        # An epoch is heard of a moment after it was made, and that moment varies.
        assert all(later - earlier >= PAUSE / 2 for earlier, later in itertools.pairwise(at))

    run(tmp_path, story, interval=30.0)


def test_samples_of_networks_that_are_not_signed_here_are_nobodys(tmp_path):
    async def story(signer):
        signer.bus.publish(Samples("other", "one", time.time(), (Sample("cpu", 1.0, time.time()),)))
        assert (await signer.next())["levels"] == {}
        assert signer.role.unknown_network == 1

    run(tmp_path, story)


def test_a_collector_that_lies_is_named_and_moves_nothing_beyond_its_share(tmp_path, caplog):
    """Four collectors of a node each, as they would be on four hosts, and a fifth that the list does not have."""

    async def story(signer):
        signer.say("foreign", 1.0)
        for name in ("one", "two", "three"):
            signer.say(name, 0.2)
        signer.say("liar", 1e9)
        statement = await signer.next()
        while statement["levels"].get("cpu") != pytest.approx(0.2):
            statement = await signer.next()
        status = signer.status()
        assert {n.name: n.state for n in status.nodes} == {
            **dict.fromkeys(("one", "two", "three"), "fresh"),
            "liar": "suspect",
        }
        assert status.node_states == {"fresh": 3, "suspect": 1}
        assert (status.intake["unknown_node"], status.intake["out_of_range"]) == (1, 1)
        told = await signer.role.explain("n")
        (cpu,) = told.profile.levels
        assert {s.node: s.counts for s in cpu.samples} == {"one": 0.2, "two": 0.2, "three": 0.2, "liar": None}
        assert told.epoch == signer.issued[-1][1].epoch

    names = ("one", "two", "three", "liar")
    run(tmp_path, story, interval=3.0, aggregate={"cpu": "max"}, node=[Node(name=name) for name in names])
    (line,) = [line for line in caplog.messages if "suspect" in line]
    assert line.startswith("network n: suspect node liar: cpu: 1000000000 is out of 0 to 1")


def test_a_silent_node_is_stale_and_told_once_and_a_reload_forgets_none_of_it(tmp_path, caplog):
    async def story(signer):
        signer.say("one", 0.4)
        signer.say("two", 0.8)
        await signer.next()
        end = time.monotonic() + 10
        while signer.status().node_states != {"fresh": 1, "stale": 1}:
            signer.say("one", 0.4)
            await signer.next()
            assert time.monotonic() < end
        await signer.sign_by(OWN)  # a reload
        signer.say("one", 0.4)
        assert (await signer.next())["levels"]["cpu"] == pytest.approx(0.4)
        assert signer.status().intake["became_stale"] == 1

    run(tmp_path, story)
    assert len([line for line in caplog.messages if "stale node two: silent for" in line]) == 1
