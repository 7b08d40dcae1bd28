"""Against a real nats-server on loopback."""

import asyncio
import signal
import time
from collections import Counter

import pytest
from broker import Server, until
from certificates import Authority
from nats.js.errors import KeyNotFoundError

from scentd.bus.nats import OUTGOING, SAMPLES, NatsBus, subject, tls_context, way_out
from scentd.config.bus import Bus
from scentd.errors import HostError


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path)
    yield made
    made.kill()


async def connected(server, takers=None, counters=None) -> tuple[NatsBus, list]:
    bus, told = NatsBus(server.settings(), Counter() if counters is None else counters), []

    async def on_connected():
        told.append(time.monotonic())

    await bus.listen(takers or {})
    bus.start(on_connected)
    await until(lambda: told, "a connection")
    return bus, told


def test_a_dot_in_a_name_is_no_level_of_a_subject():
    assert subject(SAMPLES, "p", "a.b") == "scentd.samples.p.a/b"


def test_what_is_sent_arrives_and_the_last_is_kept(server):
    async def run():
        got: list[bytes] = []
        receiver, _ = await connected(server, {f"{OUTGOING}.g.>": got.append})
        counters = Counter()
        sender, _ = await connected(server, counters=counters)
        await sender.make_streams()
        await sender.make_streams()
        assert await sender.last(f"{OUTGOING}.g.0") is None
        for n in (b"1", b"2", b"3"):
            assert sender.send(f"{OUTGOING}.g.0", n)
        await until(lambda: got == [b"1", b"2", b"3"], "in order")
        assert await receiver.last(f"{OUTGOING}.g.0") == b"3"
        assert (counters["sent"], counters["sent_bytes"]) == (3, 3)
        await receiver.listen({})
        sender.send(f"{OUTGOING}.g.0", b"4")
        await until(lambda: counters["sent"] == 4, "it is sent")
        await asyncio.sleep(0.1)
        assert got == [b"1", b"2", b"3"], "nobody listens any more"
        await sender.stop()
        await receiver.stop()

    asyncio.run(run())


def test_a_taker_that_fails_goes_on(server, caplog):
    async def run():
        got: list[bytes] = []
        counters = Counter()

        def take(data: bytes) -> None:
            if data == b"odd":
                raise KeyError("odd")
            got.append(data)

        receiver, _ = await connected(server, {f"{SAMPLES}.p.h": take}, counters)
        sender, _ = await connected(server)
        for data in (b"odd", b"good"):
            sender.send(f"{SAMPLES}.p.h", data)
        await until(lambda: got == [b"good"], "the next one is taken")
        assert counters["failed"] == 1
        await sender.stop()
        await receiver.stop()

    asyncio.run(run())
    assert "a message on scentd.samples.p.h could not be taken" in caplog.text


def test_a_broker_that_dies_and_comes_back(server, caplog):
    async def run():
        got: list[bytes] = []
        counters = Counter()
        bus, told = await connected(server, {f"{SAMPLES}.p.h": got.append})
        other, _ = await connected(server, counters=counters)
        server.kill()
        await until(lambda: not other.connected, "it is gone")
        assert not other.send(f"{SAMPLES}.p.h", b"old")
        assert counters["no_broker"] == 1
        assert "lost" in other.why_not or "refused" in other.why_not.lower()
        server.start()
        await until(lambda: other.connected and len(told) == 2, "both have it again")
        other.send(f"{SAMPLES}.p.h", b"new")
        await until(lambda: got, "messages pass")
        assert got == [b"new"], "what was old then is not sent later"
        await other.stop()
        await bus.stop()

    asyncio.run(run())
    assert "is tried again; see bus.url" in caplog.text


def test_a_start_without_a_broker_waits_for_none(tmp_path):
    async def run():
        server = Server(tmp_path)
        server.kill()
        bus, told = NatsBus(server.settings(), Counter()), []

        async def on_connected():
            told.append(1)

        bus.start(on_connected)
        await until(lambda: "refused" in bus.why_not.lower() or "Errno" in bus.why_not, f"it says why: {bus.why_not}")
        server.start()
        await until(lambda: told, "it connects by itself")
        await bus.stop()
        server.kill()
        stopped = NatsBus(server.settings(), Counter())
        stopped.start(on_connected)
        await asyncio.sleep(0.1)
        await stopped.stop()

    asyncio.run(run())


def test_a_server_that_sends_it_away_is_no_end(tmp_path):
    """A server whose users have changed says so and closes for good; this host asks again until it is let in."""

    async def run():
        server = Server(tmp_path)
        conf = tmp_path / "conf"
        open_conf = f'listen: "127.0.0.1:{server.port}"\n'
        server.kill()
        conf.write_text(open_conf)
        server.argv = ["nats-server", "-c", str(conf)]
        server.start()
        bus, told = await connected(server)
        conf.write_text(open_conf + 'authorization { user: "a", password: "b" }\n')
        server.process.send_signal(signal.SIGHUP)
        await until(lambda: not bus.connected, "it is sent away")
        await asyncio.sleep(2)
        conf.write_text(open_conf)
        server.process.send_signal(signal.SIGHUP)
        await until(lambda: bus.connected and len(told) > 1, f"it is back: {bus.why_not}")
        await bus.stop()
        server.kill()

    asyncio.run(run())


def test_a_bucket_compares_and_sets(server):
    async def run():
        bus, _ = await connected(server)
        bucket = await bus.bucket()
        with pytest.raises(KeyNotFoundError):
            await bucket.get("profiler")
        revision = await bucket.create("profiler", b"a")
        assert await bucket.update("profiler", b"b", last=revision) == revision + 1
        again = await bus.bucket()
        assert (await again.get("profiler")).value == b"b"
        await bus.stop()

    asyncio.run(run())


def test_certificates_that_are_none_name_their_setting(tmp_path):
    odd = tmp_path / "odd"
    odd.write_text("no certificate")
    with pytest.raises(HostError, match=r"bus\.ca_file"):
        tls_context(Bus(url=["tls://h:1"], name="h", key_file="k", ca_file=str(tmp_path / "none")))
    both = {"certificate_file": str(odd), "certificate_key_file": str(odd)}
    with pytest.raises(HostError, match=r"bus\.certificate_file"):
        tls_context(Bus(url=["tls://h:1"], name="h", key_file="k", ca_file=str(Authority(tmp_path / "a").file), **both))
    assert tls_context(Bus(url=["nats://h:1"], name="h", key_file="k")) is None


@pytest.mark.parametrize(
    ("said", "word"),
    [("certificate has expired", "bus.ca_file"), ("permissions violation", "nats-server.conf"), ("refused", "bus.url")],
)
def test_each_failure_has_a_way_out(said, word):
    assert word in way_out(said)
