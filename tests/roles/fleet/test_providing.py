"""One allocator and its standby decide what another host gives: real NATS, real files, all of it in one process."""

import asyncio
import contextlib
import time
from ipaddress import ip_network

import pytest
from act.filing import FilesBackend
from broker import Server, until

from scentd.act import providers, resources
from scentd.bus.local import LocalBus
from scentd.core.pairs import Pairs
from scentd.kinds import config_from
from scentd.model import Barred, DesiredAmounts, Notice, Profile, View, Views
from scentd.roles.allocator import AllocatorRole
from scentd.roles.fleet import allocating
from scentd.roles.fleet.fleet import FleetRole
from scentd.roles.profiler import ProfilerRole
from scentd.roles.resources import ResourceRole
from scentd.system.clock import steady
from scentd.wire import keys

ALLOC, DB = (keys.identity(bytes((n,)) * 32) for n in (1, 2))
UP = {
    "name": "up",
    "when": "cpu > 0.8",
    "cooldown": "60s",
    "do": {"kind": "amount", "resource": "files", "by": 1},
}
CUT = {
    "name": "cut",
    "when": "threat > 0.5",
    "purpose": "safety",
    "do": {"kind": "amount", "resource": "files", "to": 0, "timeout": "3s"},
}


@pytest.fixture(autouse=True)
def table(monkeypatch):
    monkeypatch.setitem(resources.RESOURCES, "files", FilesBackend)
    monkeypatch.setattr(providers, "LOOK", 0.1)
    monkeypatch.setattr(allocating, "INTERVAL", 0.5)
    monkeypatch.setattr("scentd.roles.fleet.fleet.INTERVAL", 0.5)


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path)
    yield made
    made.kill()


class OneHost:
    """The roles that a daemon would have for this: allocator, resources, fleet."""

    def __init__(self, directory, name, config):
        self.directory, self.name, self.config = directory, name, config
        identity = ALLOC if config.bus.name == "alloc" else DB
        self.bus = LocalBus()
        self.wanted, self.notices = [], []
        self.bus.subscribe(DesiredAmounts, self.wanted.append)
        self.bus.subscribe(Notice, self.notices.append)
        self.allocator = AllocatorRole(config, self.bus)
        self.resources = ResourceRole(config, self.bus, lambda _: ())
        self.fleet = FleetRole(config.bus, identity, self.bus, ProfilerRole(self.bus), self.allocator)
        self.ticks = None
        self.began = time.time()

    async def start(self):
        given = self.allocator.start() | self.fleet.given(self.config)
        await self.resources.start(given)
        await self.fleet.configure(self.config, Pairs(self.config, {}, {}))
        self.fleet.start()
        self.ticks = asyncio.create_task(self.tick())

    async def tick(self):
        while True:
            self.allocator.tick()
            await asyncio.sleep(0.1)

    async def stop(self):
        """As a clean end; once more does nothing."""
        if self.ticks is not None:
            self.ticks.cancel()
            self.ticks = None
            await self.fleet.stop()
            await asyncio.to_thread(self.resources.close, False)
            await asyncio.to_thread(self.allocator.close, False)

    async def vanish(self):
        """As after kill -9: nobody is told, and the lease is not given back."""
        self.fleet._nats._task.cancel()
        await self.fleet._nats._client.close()
        await self.stop()

    @property
    def active(self):
        return self.fleet.status().allocation_lease.active

    def see(self, cpu, epoch, threat=0.0):
        """A profile of epoch 100 is of ten seconds from now, each five epochs later one ten later: after any change."""
        at = self.began + 10 + 2 * (epoch - 100)
        profile = Profile("acme", int(at), 5, cpu, {"cpu": cpu, "threat": threat}, bytes(32))
        self.bus.publish(Views((View("acme", (profile,), at, cpu, threat, int(at)),)))

    def entry(self):
        return self.allocator.amounts.entry("files", "acme")

    def decisions(self):
        return [n.fields for n in self.notices if n.event == "decision"]

    def files(self):
        place = self.directory / "files" / "acme"
        return len(list(place.iterdir())) if place.exists() else 0


PEER = {"name": "acme", "public_key": str(keys.identity(b"\3" * 32).public), "addresses": ["10.1.0.0/16"]}


class Fleet:
    def __init__(self, server, directory):
        self.server, self.directory = server, directory
        (directory / "files").mkdir()

    def config(self, own, bus_name, others, **more):
        state = str(self.directory / own)
        bus = {
            "url": [f"nats://127.0.0.1:{self.server.port}"],
            "name": bus_name,
            "key_file": "k",
            "host": [{"name": n, "public_key": str(i.public), "duties": duties} for n, i, duties in others],
        }
        daemon = {"state_dir": state}
        return config_from({"daemon": daemon, "peer": [PEER], "bus": bus, **more})

    def resource(self, **more):
        section = {"name": "files", "kind": "files", "maximum": 5}
        return [{**section, "directory": str(self.directory / "files"), **more}]

    def provider(self, **more):
        others = [("alloc", ALLOC, ["allocate"])]
        return OneHost(self.directory, "db", self.config("db", "db", others, resource=self.resource(**more)))

    def alloc(self, own, policies=(UP, CUT), **more):
        others = [("db", DB, ["provide", "verify"])]  # it tells of quarantines, too
        sections = {"resource": self.resource(host="db", **more), "policy": list(policies)}
        return OneHost(self.directory, own, self.config(own, "alloc", others, **sections))


@pytest.fixture
def run(server, tmp_path):
    """Runs a coroutine function with a Fleet and `start`, which starts hosts and stops them at the end."""

    def runner(body):
        async def whole():
            async with contextlib.AsyncExitStack() as stack:

                async def start(*hosts):
                    for host in hosts:
                        await host.start()
                        stack.push_async_callback(host.stop)

                await body(Fleet(server, tmp_path), start)

        asyncio.run(whole())

    return runner


def test_what_is_decided_on_one_host_is_given_by_another(run):
    async def body(fleet, start):
        db, one = fleet.provider(), fleet.alloc("one")
        await start(db, one)
        await until(lambda: one.active and one.entry().observed == 0, "the allocator knows what there is")
        one.see(0.9, 100)
        await until(lambda: db.files() == 1, "it is given")
        await until(lambda: one.entry().observed == 1, "and reported")
        await until(lambda: any(n.event == "applied" for n in one.notices), "so is the change")
        status = db.fleet.status().providing
        assert (status.resources, status.amounts, status.restricted) == (["files"], 1, 0)
        assert list(status.terms) == ["alloc"]

    run(body)


def test_a_standby_takes_over_where_the_other_was_and_changes_nothing(run):
    async def body(fleet, start):
        db, one = fleet.provider(), fleet.alloc("one")
        await start(db, one)
        await until(lambda: one.active and one.entry().desired is not None, "active")
        other = fleet.alloc("other")
        await start(other)
        for host in (one, other):
            host.see(0.9, 100)
        await until(lambda: db.files() == 1, "it is given")
        await until(lambda: other.entry().desired == 1, "the standby knows")
        assert (other.decisions(), other.active) == ([], False)
        told = len(db.wanted)
        killed = steady()
        await one.vanish()
        await until(lambda: other.active, "it takes over")
        assert steady() - killed < 2 * 0.5 + 9
        term = other.fleet.status().allocation_lease.term
        await until(lambda: db.fleet.status().providing.terms == {"alloc": term}, "the host goes by it")
        other.see(0.9, 105)  # the policy holds on: its cooldown runs since the other one has fired
        await asyncio.sleep(1.0)
        assert (db.files(), len(db.wanted), other.decisions()) == (1, told, [])

    run(body)


def test_an_old_desired_state_is_refused_and_so_it_is_after_a_restart(run):
    async def body(fleet, start):
        db, one = fleet.provider(), fleet.alloc("one")
        heard = []
        take = db.fleet._desired_taker.take
        db.fleet._desired_taker.take = lambda message: (heard.append(message), take(message))
        await start(db, one)
        await until(lambda: one.active and one.entry().desired is not None and heard, "active")
        one.see(0.9, 100)
        await until(lambda: db.files() == 1, "it is given")
        count = db.fleet.counters
        recorded = heard[0]
        await until(lambda: len(heard) > 1, "it has said more than one thing")
        db.fleet._desired_taker.take(recorded)
        assert count["replayed"] == 1
        await db.stop()
        await one.stop()
        again = fleet.provider()
        await start(again)
        assert again.fleet.status().providing.amounts == 1
        again.fleet._desired_taker.take(recorded)
        assert again.fleet.counters["replayed"] == 1
        two = fleet.alloc("two")
        await start(two)
        await until(lambda: two.active, "another allocator")
        await until(lambda: again.fleet.status().providing.terms["alloc"] > 0, "it is told")
        term = two.fleet.status().allocation_lease.term
        await until(lambda: again.fleet.status().providing.terms["alloc"] == term, "of the new term")
        again.fleet._desired_taker.take(recorded)
        assert again.fleet.counters["old_term"] == 1
        await asyncio.sleep(0.3)
        assert again.files() == 1

    run(body)


def test_amounts_outlast_the_bus_and_a_restriction_ends(run, server):
    async def body(fleet, start):
        db, one = fleet.provider(normal=1), fleet.alloc("one", normal=1)
        await start(db, one)
        await until(lambda: one.active and db.files() == 1 and one.entry().observed == 1, "the usual one")
        one.see(0.9, 100)
        await until(lambda: db.files() == 2, "given")
        one.see(0.5, 105, threat=0.9)
        await until(lambda: db.files() == 0, "cut off")
        server.kill()
        await until(lambda: not one.active, "an allocator without its lease decides nothing")
        one.see(0.9, 110)
        await until(lambda: db.files() == 1, "the usual amount again")
        assert db.fleet.counters["ended"] == 1
        await asyncio.sleep(0.5)
        assert db.files() == 1
        server.start()
        await until(lambda: one.active, "it has the lease again")

    run(body)


def test_a_host_that_joins_later_has_what_was_kept(run):
    async def body(fleet, start):
        db, one = fleet.provider(), fleet.alloc("one")
        await start(db, one)
        await until(lambda: one.active and one.entry().desired is not None, "active")
        one.see(0.9, 100)
        await until(lambda: db.files() == 1, "given")
        await until(lambda: one.entry().observed == 1, "reported")
        await db.stop()
        await one.stop()
        for file in (fleet.directory / "db").glob("desired.db*"):
            file.unlink()
        again = fleet.provider()
        await start(again)
        await until(lambda: again.fleet.status().providing.amounts == 1, "from the stream")

    run(body)


def test_a_new_term_is_above_what_hosts_have_had_though_the_bucket_is_new(run, monkeypatch):
    async def body(fleet, start):
        db, one = fleet.provider(), fleet.alloc("one")
        await start(db, one)
        await until(lambda: db.fleet.status().providing.terms, "told")
        [term] = db.fleet.status().providing.terms.values()
        await one.fleet._nats._jetstream.delete_key_value("SCENTD")
        await one.vanish()
        monkeypatch.setattr("scentd.roles.fleet.lease_keeper.time.time", lambda: 1000.0)
        other = fleet.alloc("other")
        await start(other)
        await until(lambda: db.fleet.status().providing.terms["alloc"] > term, "a term above")

    run(body)


def test_a_host_takes_what_it_offers_within_its_own_bounds(run):
    async def body(fleet, start):
        db = fleet.provider(maximum=2)
        far = {**UP, "do": {"kind": "amount", "resource": "files", "to": 5}}
        one = fleet.alloc("one", [far])
        await start(db, one)
        await until(lambda: one.active and one.entry().desired is not None, "active")
        one.see(0.9, 100)
        await until(lambda: db.files() == 2, "no more than this host gives")
        assert db.fleet.counters["clamped"] >= 1
        assert one.entry().desired == 5

    run(body)


def test_whom_a_verifier_has_cut_off_people_at_the_allocator_are_told(run, caplog):
    caplog.set_level("INFO")

    async def body(fleet, start):
        db, one = fleet.provider(), fleet.alloc("one")
        await start(db, one)
        await until(lambda: one.active, "active")
        told = lambda: [n.fields for n in one.notices if n.event == "quarantined"]  # noqa: E731
        db.bus.publish(Barred({ip_network("10.1.2.3/32"): time.time() + 60}))
        await until(lambda: told() == [{"host": "db", "sender": "10.1.2.3", "begins": True}], "it begins")
        db.bus.publish(Barred({}))
        await until(lambda: len(told()) == 2, "it ends")
        assert "10.1.2.3 is quarantined on db" in caplog.text
        assert "10.1.2.3 is no longer quarantined on db" in caplog.text

    run(body)


def test_two_allocators_that_share_no_lease_do_not_both_decide(run, tmp_path):
    """Each has a bucket of its own, as after a mistake: the one with the older term yields, and says so."""

    async def body(fleet, start):
        db, one = fleet.provider(), fleet.alloc("one")
        await start(db, one)
        await until(lambda: one.active and db.fleet.status().providing.terms, "active")
        other = fleet.alloc("other")
        other.fleet._allocation_keeper._key = "allocate/elsewhere"
        await asyncio.sleep(1.1)  # a term is a second
        await start(other)
        await until(lambda: one.fleet.counters["second_allocator"], "the older one hears of it")
        assert not one.active
        term = other.fleet.status().allocation_lease.term
        await until(lambda: db.fleet.status().providing.terms["alloc"] == term, "the host goes by the newer one")
        await asyncio.sleep(3.0)
        assert db.fleet.status().providing.terms["alloc"] == term

    run(body)


def test_what_another_host_cannot_give_is_said_here(run):
    async def body(fleet, start):
        db, one = fleet.provider(), fleet.alloc("one")
        await start(one)
        assert one.fleet.why_not("files", "acme") == "db has said nothing of it yet"
        (fleet.directory / "files" / "refuse").touch()
        await start(db)
        await until(lambda: one.active and one.entry().desired is not None, "active")
        assert one.fleet.why_not("files", "acme") == ""
        one.see(0.9, 100)
        await until(lambda: one.fleet.why_not("files", "acme") == "refuse: remove it", "what to mend")

    run(body)
