"""The allocator with resources on a real file system: from views to files; over a restart, held, dry, gone wrong."""

import asyncio
import contextlib
import time

import pytest
from act.filing import FilesBackend

from scentd.act import providers, resources
from scentd.bus.local import LocalBus
from scentd.errors import HostError
from scentd.kinds import config_from
from scentd.model import Applied, Notice, Observed, PriorWish, Profile, View, Views
from scentd.roles.allocation_status import allocation_status, explanation
from scentd.roles.allocator import AllocatorRole
from scentd.roles.resources import ResourceRole
from scentd.wire import keys

UP = {"name": "up", "when": "cpu > 0.8", "do": {"kind": "amount", "resource": "files", "by": 1}}
DOWN = {"name": "down", "when": "cpu < 0.3", "do": {"kind": "amount", "resource": "files", "to": 1}}


@pytest.fixture(autouse=True)
def table(monkeypatch):
    monkeypatch.setitem(resources.RESOURCES, "files", FilesBackend)
    monkeypatch.setattr(providers, "LOOK", 0.1)


def public_key(number):
    return str(keys.identity(bytes([number + 1]) * 32).public)


class Running:
    """An allocator and its resources, as the daemon has them."""

    def __init__(self, directory, **more):
        self.stopped = False
        self.began = time.time()
        self.directory, self.bus, self.notices, self.applied = directory, LocalBus(), [], []
        self.bus.subscribe(Notice, self.notices.append)
        self.bus.subscribe(Applied, self.applied.append)
        self.config = self.settings(**more)
        self.allocator = AllocatorRole(self.config, self.bus)
        self.resources = ResourceRole(self.config, self.bus, self.allocator.hurting)
        self.given = self.allocator.start()

    def settings(self, policies=(UP, DOWN), resource=(), allocator=()):
        state = str(self.directory / "state")
        return config_from(
            {
                "daemon": {"state_dir": state},
                "network": [{"name": "own", "key_file": "own.key"}],
                "peer": [
                    {"name": name, "public_key": public_key(i), "addresses": [f"10.{i}.0.0/16"]}
                    for i, name in enumerate("ab")
                ],
                "resource": [
                    {"name": "files", "kind": "files", "maximum": 5, "directory": str(self.directory / "files")}
                    | dict(resource)
                ],
                "policy": list(policies),
                "allocator": dict(allocator),
            }
        )

    def see(self, cpu, epoch, peer="a"):
        """A profile of epoch 100 is of now, each five epochs later one of ten seconds later: of after any change."""
        at = self.began + 2 * (epoch - 100)
        profile = Profile(peer, int(at), 5, cpu, {"cpu": cpu}, bytes(32))
        self.bus.publish(Views((View(peer, (profile,), at, cpu, 0.0, int(at)),)))

    def files(self, peer="a"):
        directory = self.directory / "files" / peer
        return len(list(directory.iterdir())) if directory.exists() else 0

    async def until(self, condition):
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.02)
                self.allocator.tick()

    def decisions(self):
        return [n.fields for n in self.notices if n.event == "decision"]

    async def stop(self):
        if self.stopped:
            return
        self.stopped = True
        await asyncio.to_thread(self.resources.close, True)
        await asyncio.to_thread(self.allocator.close, True)


@pytest.fixture
def run(tmp_path):
    """Runs a coroutine function with `start`, which makes a Running."""
    (tmp_path / "files").mkdir()

    def runner(body):
        async def whole():
            async with contextlib.AsyncExitStack() as stack:

                async def start(**more):
                    made = Running(tmp_path, **more)
                    await made.resources.start(made.given)
                    stack.push_async_callback(made.stop)
                    return made

                await body(start)

        asyncio.run(whole())

    return runner


def test_from_views_to_files_and_back(run):
    async def body(start):
        running = await start()
        running.see(0.9, 100)
        await running.until(lambda: running.files() == 1)
        running.see(0.9, 105)
        await running.until(lambda: running.files() == 2 and len(running.applied) == 2)
        running.see(0.2, 110)
        await running.until(lambda: running.files() == 1)
        assert running.files("b") == 0
        said = running.decisions()
        assert [(d["policy"], d["before"], d["after"]) for d in said] == [
            ("up", "0 files", "1 files"),
            ("up", "1 files", "2 files"),
            ("down", "2 files", "1 files"),
        ]
        assert said[0]["reason"] == "cpu > 0.8 [cpu=0.9]"

    run(body)


def test_status_and_explanation_say_what_is_wanted_and_had(run, tmp_path):
    async def body(start):
        running = await start()
        (tmp_path / "files" / "fail").touch()
        running.see(0.9, 100)
        await running.until(lambda: running.resources.why_not("files", "a"))
        status, rest, _ = allocation_status(running.allocator, running.config, running.resources.why_not, 10)
        (found,) = [r for r in status.resources if r.peer == "a"]
        assert (found.kind, found.resource, found.amount, found.observed) == ("files", "files", 1.0, 0.0)
        assert found.text == "1 files (0 files now)"
        assert found.why_not == "fail: remove it"
        assert rest == {}
        view = View("a", (Profile("a", 100, 5, 0.9, {"cpu": 0.9}, bytes(32)),), time.time())
        told = explanation(running.allocator, "a", view, 5)
        assert [(p.policy, p.outcome) for p in told.policies] == [("up", "already"), ("down", "false")]
        assert [d.policy for d in told.decisions] == ["up"]

    run(body)


def test_a_restart_knows_amounts_and_pauses(run):
    async def body(start):
        first = await start(policies=[UP | {"cooldown": "1h"}])
        first.see(0.9, 100)
        await first.until(lambda: first.files() == 1)
        await first.stop()
        (first.directory / "files" / "a" / "0").unlink()
        second = await start(policies=[UP | {"cooldown": "1h"}])
        second.see(0.9, 105)
        await second.until(lambda: second.files() == 1)
        assert [d["action"] for d in second.decisions()] == ["drift"]
        assert [p.outcomes for p in second.allocator.standings()] == [{"cooling": 1}]

    run(body)


def test_what_is_held_does_not_change_even_over_a_restart(run):
    async def body(start):
        first = await start()
        await first.until(lambda: first.allocator.amounts.bounds("files", "a"))
        with pytest.raises(HostError, match="no resource or peer has this name; known: \\*, a, b, files"):
            first.allocator.hold(["nobody"])
        assert first.allocator.hold(["a"]) == {"a"}
        first.see(0.9, 100)
        first.allocator.tick()
        await first.stop()
        second = await start()
        second.see(0.9, 105)
        second.see(0.9, 105, "b")
        await second.until(lambda: second.files("b") == 1)
        assert second.files() == 0
        assert second.allocator.resume([]) == set()
        await second.until(lambda: second.files() == 1)

    run(body)


@pytest.mark.parametrize("settings", [{"allocator": {"dry_run": True}}, {"policies": [UP | {"dry_run": True}]}])
def test_a_dry_run_only_says_so(run, settings):
    async def body(start):
        running = await start(**settings)
        for epoch in (100, 105, 110):
            running.see(0.9, epoch)
        await asyncio.sleep(0.3)
        assert running.files() == 0
        assert [(d["action"], d["after"]) for d in running.decisions()] == [("dry-run amount", "1")]

    run(body)


def test_what_helped_is_told(run):
    async def body(start):
        running = await start()
        running.see(0.9, 100)
        await running.until(lambda: len(running.applied) == 1)
        running.see(0.6, 105)
        running.see(0.5, 115)
        effects = [n.fields for n in running.notices if n.event == "effect"]
        assert [(e["metric"], e["before"], e["after"], e["trend"]) for e in effects] == [("cpu", 0.9, 0.5, "fell")]

    run(body)


def test_a_reload_keeps_amounts_and_gives_back_what_is_gone(run):
    async def body(start):
        running = await start(resource={"on_exit": "give-back"})
        running.see(0.9, 100)
        await running.until(lambda: running.files() == 1)
        config = running.settings(resource={"on_exit": "give-back", "maximum": 3})
        running.allocator.reload(config)
        await running.resources.reload(config)
        running.see(0.9, 105)
        await running.until(lambda: running.files() == 2)
        await running.stop()
        assert running.files() == 0

    run(body)


def test_a_policy_that_fails_stops_nothing(run, monkeypatch):
    async def body(start):
        running = await start()
        monkeypatch.setattr(running.allocator._decider, "decide", lambda *_: 1 // 0)
        running.see(0.9, 100)
        assert running.allocator.policy_errors == 1
        monkeypatch.undo()
        monkeypatch.setitem(resources.RESOURCES, "files", FilesBackend)
        running.see(0.9, 105)
        await running.until(lambda: running.files() == 1)

    run(body)


def test_an_allocator_that_does_not_decide_follows_and_then_looks_at_all(run):
    async def body(start):
        running = await start(policies=[UP])
        allowed = []
        running.allocator.gate = lambda: bool(allowed)
        running.see(0.9, 100)
        await running.until(lambda: running.allocator.amounts.entry("files", "a").observed == 0)
        await asyncio.sleep(0.3)
        assert (running.decisions(), running.files()) == ([], 0)
        allowed.append(True)
        running.allocator.take_over()
        await running.until(lambda: running.files() == 1)

    run(body)


def test_who_decides_again_asks_again_at_the_next_statement(run):
    async def body(start):
        fixed = {**UP, "do": {"kind": "amount", "resource": "files", "to": 3}}
        running = await start(policies=[fixed])
        allowed = [True]
        running.allocator.gate = lambda: bool(allowed)
        running.see(0.9, 100)
        await running.until(lambda: running.files() == 3)
        allowed.clear()
        running.bus.publish(Observed("files", {"a": 1.0}, (), {"a": PriorWish(1.0, policy="up", since=time.time())}))
        assert running.allocator.amounts.entry("files", "a").desired == 1
        allowed.append(True)
        running.allocator.take_over()
        await running.until(lambda: running.files() == 1)
        running.see(0.9, 105)
        await running.until(lambda: running.files() == 3)

    run(body)
