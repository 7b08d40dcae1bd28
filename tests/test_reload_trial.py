"""Trials on a real event loop and a real file. What is switched to is only noted; tests/netns has whole daemons."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from scentd import reload
from scentd.errors import ConfigError
from scentd.reload import ReloadOutcome, Reloads
from scentd.state import key_files

SHORT = 0.05


class Story:
    """A file, its reloads, and the intervals of the configurations that were switched to."""

    def __init__(self, directory) -> None:
        self.key, self.path = directory / "key", directory / "scentd.toml"
        self.key.touch(0o600)
        self.key.write_text(key_files.generate())
        self.write(2)
        self.switched: list[float] = []
        self.failures: list[Exception] = []  # of the next switches
        self.problems: list[str] = []
        self.tasks: list[asyncio.Task] = []
        self.reloads = Reloads(str(self.path), reload.read(str(self.path)), self.switch, self.spawn)

    def write(self, interval: int, more: str = "") -> None:
        self.path.write_text(f'{more}\n[[network]]\nname = "n"\nkey_file = "{self.key}"\ninterval = "{interval}s"\n')

    async def switch(self, setup: reload.Setup) -> list[str]:
        if self.failures:
            raise self.failures.pop(0)
        self.switched.append(setup.config.network[0].interval)
        return self.problems

    def spawn(self, coroutine) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(coroutine))

    async def reload(self, interval: int, confirm: float = 0.0) -> ReloadOutcome:
        self.write(interval)
        return await self.reloads.reload(confirm)

    async def over(self) -> None:
        """Some trials have ended, if there were any."""
        await asyncio.sleep(3 * SHORT)
        await asyncio.gather(*self.tasks)


@pytest.fixture
def story(tmp_path) -> Story:
    return Story(tmp_path)


def run(coroutine) -> None:
    asyncio.run(coroutine)


def test_an_unconfirmed_one_goes_back_without_any_file(story):
    async def play():
        outcome = await story.reload(3, SHORT)
        assert outcome.applied
        assert outcome.trial_until == story.reloads.trial_until is not None
        story.path.unlink()
        story.key.unlink()
        await story.over()
        assert story.switched == [3, 2]
        assert story.reloads.trial_until is None
        assert story.reloads.reverted_at is not None
        assert story.reloads.counts == {"applied": 1, "refused": 0, "reverted": 1}
        assert not (await story.reloads.confirm()).applied

    run(play())


def test_a_confirmed_one_stays(story):
    async def play():
        await story.reload(3, SHORT)
        assert (await story.reloads.confirm()).applied
        await story.over()
        assert story.switched == [3]
        assert story.reloads.reverted_at is None

    run(play())


@pytest.mark.parametrize("confirm", [0.0, SHORT])
def test_another_reload_meanwhile_goes_back_to_the_same(story, confirm):
    """With `--confirm` it begins a trial of its own; without one it is part of the first."""

    async def play():
        await story.reload(3, SHORT if not confirm else 60)
        await story.reload(4, confirm)
        await story.over()
        assert story.switched == [3, 4, 2]

    run(play())


def test_a_longer_trial_replaces_one_that_ends_at_this_moment(story):
    """The end of the first waits for the lock that the second reload holds."""

    async def play():
        await story.reload(3, SHORT)
        async with story.reloads.lock:
            second = asyncio.create_task(story.reload(4, 60))  # is first in the line
            await asyncio.sleep(2 * SHORT)
        await second
        await story.over()
        assert story.switched == [3, 4]
        assert story.reloads.trial_until is not None
        story.reloads.stop()

    run(play())


def test_a_refused_reload_begins_no_trial_and_ends_none(story):
    async def play():
        assert not (await story.reload(0, SHORT)).applied
        assert story.reloads.trial_until is None
        await story.reload(3, SHORT)
        story.failures = [ConfigError(["the keys do not fit"])]
        outcome = await story.reload(4)
        assert outcome.problems == ["the keys do not fit"]
        assert outcome.trial_until is not None
        await story.over()
        assert story.switched == [3, 2]

    run(play())


def test_a_defect_in_the_middle_of_a_switch_goes_back_too(story):
    async def play():
        story.failures = [RuntimeError("half of it is done")]
        with contextlib.suppress(RuntimeError):
            await story.reload(3, SHORT)
        assert story.reloads.trial_until is not None
        await story.over()
        assert story.switched == [2]

    run(play())


def test_what_did_not_work_is_told(story, caplog):
    async def play():
        story.problems = ["no such interface"]
        outcome = await story.reload(3)
        assert outcome.applied
        assert outcome.problems == ["no such interface"]

    run(play())
    assert "applied but for: no such interface" in caplog.text


def test_going_back_is_tried_again(story, monkeypatch, caplog):
    monkeypatch.setattr(reload, "RETRY", SHORT)

    async def play():
        await story.reload(3, SHORT)
        story.failures = [ConfigError(["no room on the disk"])]
        await story.over()
        assert story.switched == [3, 2]

    run(play())
    assert "going back failed, next try" in caplog.text


def test_a_stop_says_what_comes_next(story, caplog):
    async def play():
        await story.reload(3, SHORT)
        story.reloads.stop()
        await story.over()
        assert story.switched == [3]

    run(play())
    assert "the next daemon takes" in caplog.text


def test_a_later_reload_is_the_files_again(story):
    async def play():
        await story.reload(3, SHORT)
        await story.over()
        await story.reload(4)
        assert story.reloads.reverted_at is None

    run(play())
