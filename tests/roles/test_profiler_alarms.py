"""An alarm that comes just after an epoch: it does not wait for the next second, unless others came just before."""

import asyncio
import time
from itertools import pairwise

from signer import OWN, Signer, run

from scentd.model import SecurityEvent
from scentd.state.slots import issued_slot


def alarm(signer: Signer, severity: float = 0.9) -> None:
    now = time.time()
    event = SecurityEvent("intrusion", severity, now, now + 60, "192.0.2.9")
    signer.say("one", 0.2, events=(event,), alarm=True)


def leads(signer: Signer) -> list[float]:
    """By how many seconds each epoch was ahead of the clock when it was issued."""
    offset = time.time() - time.monotonic()
    return [issued.epoch - (at + offset) for at, issued in signer.issued]


def test_an_alarm_after_an_epoch_is_the_next_epoch_although_its_second_has_not_begun(tmp_path):
    async def story(signer):
        await asyncio.sleep(1.0 - time.time() % 1.0)
        signer.say("one", 0.2)
        await signer.next()
        await asyncio.sleep(0.05)
        alarm(signer)
        assert (await signer.next())["alarm"]
        (before, regular), (at, urgent) = signer.issued[-2:]
        assert urgent.epoch == regular.epoch + 1
        assert signer.epoch_file.epoch(issued_slot("n")) == urgent.epoch, "stored before it is used"
        assert 0 < leads(signer)[-1] <= 2, "ahead of the clock"
        assert at - before < 1, "long before the second is over"

    run(tmp_path, story, interval=30.0)


def test_of_many_alarms_at_once_some_wait_and_all_are_told(tmp_path):
    async def story(signer):
        signer.say("one", 0.2)
        await signer.next()
        for _ in range(6):
            alarm(signer)
            assert (await signer.next())["alarm"]
        epochs = [issued.epoch for _, issued in signer.issued]
        assert epochs == sorted(set(epochs))
        assert all(lead <= 2.01 for lead in leads(signer))

    run(tmp_path, story, interval=30.0)


def test_the_next_regular_profile_comes_when_it_is_due(tmp_path):
    """The alarm takes nothing from it: the collector speaks again, and that makes a profile."""

    async def story(signer):
        signer.say("one", 0.2)
        await signer.next()
        for _ in range(2):
            alarm(signer)
            await signer.next()
        signer.say("one", 0.6)
        await signer.next()
        assert [issued.alarm for _, issued in signer.issued][-3:] == [True, True, False]
        assert leads(signer)[-1] <= 1.01
        assert all(later[1].epoch > earlier[1].epoch for earlier, later in pairwise(signer.issued))

    run(tmp_path, story, interval=30.0)


def test_an_alarm_in_the_pause_is_told_although_the_configuration_is_read_again(tmp_path):
    async def story(signer):
        signer.say("one", 0.2)
        await signer.next()
        for _ in range(2):  # from now on alarms wait
            alarm(signer)
            await signer.next()
        alarm(signer)
        await signer.sign_by(OWN)
        assert (await signer.next())["alarm"]

    run(tmp_path, story, interval=30.0)
