import asyncio
import json
import logging
import socket
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from scentd.collect.bandwidth import BandwidthSource
from scentd.collect.cpu import CpuSource
from scentd.collect.eve import EveSource
from scentd.collect.memory import MemorySource
from scentd.collect.prometheus import PrometheusSource
from scentd.collect.readers import Readers, highest_samples, named, of_source
from scentd.collect.tcp import TcpSource
from scentd.config.sections import Network
from scentd.errors import HostError
from scentd.model import Sample, SecurityEvent

ALERT = json.dumps({"event_type": "alert", "dest_ip": "10.0.0.7", "alert": {"severity": 1}}).encode() + b"\n"


def readers(*sources, on_alarm=lambda event: None, **changes):
    return Readers(Network(name="a", key_file="k", source=list(sources), **changes), on_alarm)


class Exporter:
    """A minimal HTTP server whose answers a test holds back or changes."""

    def __init__(self, text):
        self.text = text
        self.go = threading.Event()
        self.go.set()
        self._sock = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self._sock.getsockname()[1]}/metrics"

    def source(self, **changes):
        return PrometheusSource(**{"url": self.url, "series": "load", "full": 10.0, **changes})

    def _serve(self):
        while True:
            try:
                client, _ = self._sock.accept()
            except OSError:
                return
            with client:
                client.recv(10_000)
                self.go.wait(10)
                client.sendall(f"HTTP/1.0 200 OK\r\n\r\n{self.text}\n".encode())

    def close(self):
        self.go.set()
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


@pytest.fixture
def exporter():
    made = Exporter("load 5")
    yield made
    made.close()


@pytest.fixture
def path():
    with tempfile.TemporaryDirectory(prefix="sc") as directory:
        yield Path(directory, "eve.sock")


def test_every_kind_of_source_on_this_host(exporter):
    made = readers(
        CpuSource(),
        MemorySource(role="db"),
        BandwidthSource(interface="lo", capacity=1e9),
        TcpSource(),
        exporter.source(),
    )
    first = made.read(1.0)
    assert {s.metric for s in first} == {"memory", "request_load"}
    time.sleep(0.1)
    second = made.read(2.0)
    assert {s.metric for s in second} - {"latency", "jitter"} == {
        "cpu",
        "memory",
        "bandwidth_in",
        "bandwidth_out",
        "request_load",
    }
    assert {s.at for s in second} == {2.0}
    assert not [k for k, v in made.counters().items() if v]
    asyncio.run(made.close())


def test_it_is_read_in_a_thread_beside_a_running_loop():
    made = readers(BandwidthSource(interface="lo", capacity=1e9), TcpSource())

    async def main():
        await asyncio.to_thread(made.read, 1.0)
        await made.close()

    asyncio.run(main())
    assert not [k for k, v in made.counters().items() if v]


def test_one_failing_source_stops_no_other_and_is_logged_once_and_once_when_it_recovers(exporter, caplog):
    caplog.set_level(logging.INFO)
    exporter.text = "other 1"
    made = readers(exporter.source(), MemorySource())
    for now in (1.0, 2.0, 3.0):
        assert [s.metric for s in made.read(now)] == ["memory"]
    assert made.counters()["failures_prometheus_request_load"] == 3
    (line,) = caplog.messages
    assert "source prometheus_request_load: http://127.0.0.1" in line
    assert "no series load" in line
    caplog.clear()
    exporter.text = "load 5"
    for now in (4.0, 5.0):
        assert Sample("request_load", 0.5, now) in made.read(now)
    assert caplog.messages == ["source prometheus_request_load: works again"]
    assert made.counters()["failures_prometheus_request_load"] == 3
    asyncio.run(made.close())


def test_each_source_has_a_state_with_its_reason(exporter, monkeypatch):
    made = readers(exporter.source(node="db-1", timeout=10.0), MemorySource(role="db"), interval=1.0)

    def states():
        return {state.name: (state.state, state.reason) for state in made.states()}

    name = "prometheus_request_load_db_1"
    assert states() == dict.fromkeys((name, "memory"), ("stale", "no reading yet"))
    made.read(1.0)
    assert states() == dict.fromkeys((name, "memory"), ("fresh", ""))
    exporter.text = "other 1"
    made.read(2.0)
    assert states()[name][0] == "failing"
    assert "no series load" in states()[name][1]
    exporter.text = "load 5"
    made.read(3.0)
    assert states()[name] == ("fresh", "")
    monkeypatch.setattr(type(made._polled["memory"]), "read", lambda self, now: [Sample("memory", 7.5, now)])
    made.read(4.0)
    assert states()["memory"] == ("suspect", "memory is 7.5, out of 0 to 1")
    exporter.go.clear()  # it does not answer, and has not failed yet
    made.read(5.0)
    monkeypatch.setattr(made, "_stale_after", 0.01)
    time.sleep(0.02)
    assert states()[name][0] == "stale"
    assert states()[name][1].startswith("no answer for")
    asyncio.run(made.close())


def test_a_source_that_is_told_is_fresh_while_it_listens(path):
    (state,) = readers(EveSource(socket=str(path), node="db-1")).states()
    assert (state.name, state.state, state.age, state.source.node) == ("eve_db_1", "fresh", None, "db-1")


def test_a_fault_of_ours_in_one_source_is_logged_with_its_place_and_stops_no_other(exporter, caplog):
    # full = 0 cannot come through the configuration's checks.
    made = readers(exporter.source(full=0.0), MemorySource())
    assert [s.metric for s in made.read(1.0)] == ["memory"]
    assert "unexpected ZeroDivisionError" in caplog.messages[0]
    assert caplog.records[0].exc_info[0] is ZeroDivisionError
    assert made.counters()["failures_prometheus_request_load"] == 1
    asyncio.run(made.close())


def test_a_slow_source_is_not_waited_for_and_counts_when_it_comes(exporter):
    exporter.go.clear()
    made = readers(exporter.source(timeout=10.0), MemorySource(), interval=1.0)
    began = time.monotonic()
    assert [s.metric for s in made.read(1.0)] == ["memory"]
    assert [s.metric for s in made.read(2.0)] == ["memory"]
    assert time.monotonic() - began < 1.8
    assert made.counters()["late_prometheus_request_load"] == 2
    exporter.go.set()
    assert Sample("request_load", 0.5, 1.0) in made.read(3.0)  # of the first request: no second was made
    assert made.counters()["failures_prometheus_request_load"] == 0
    asyncio.run(made.close())


def test_of_two_sources_of_the_same_the_highest_counts_and_names_stay_apart(exporter):
    made = readers(exporter.source(), exporter.source(full=6.25), exporter.source(series="none"))
    assert made.read(1.0) == [Sample("request_load", 0.8, 1.0)]
    failures = {k: v for k, v in made.counters().items() if k.startswith("failures_")}
    assert failures == {
        "failures_prometheus_request_load": 0,
        "failures_prometheus_request_load_2": 0,
        "failures_prometheus_request_load_3": 1,
    }
    asyncio.run(made.close())


def test_the_highest_is_of_the_same_region():
    samples = [
        Sample("latency", 0.1, 1.0),
        Sample("latency", 0.9, 1.0, region="a"),
        Sample("latency", 0.8, 1.0, region="a"),
    ]
    assert highest_samples(samples) == samples[:2]


def test_counter_names_are_fit_for_a_metric():
    made = readers(BandwidthSource(interface="eth0.5@x", capacity=1e9))
    assert "failures_bandwidth_eth0_5_x" in made.counters()
    assert {"eve_lines", "eve_bad_json", "eve_too_long", "prometheus_not_finite"} <= set(made.counters())


def test_closed_readers_read_nothing():
    made = readers(MemorySource())
    asyncio.run(made.close())
    asyncio.run(made.close())
    assert made.read(1.0) == []


async def send(path, data, made, alerts):
    _, writer = await asyncio.open_unix_connection(path)
    writer.write(data)
    async with asyncio.timeout(5):
        while made.counters()["eve_alerts"] < alerts:
            await asyncio.sleep(0.005)
    writer.close()


def test_alerts_raise_alarms_and_end(path):
    alarms = []
    made = readers(
        EveSource(socket=str(path), hold=30.0),
        on_alarm=lambda event: alarms.append((event.severity, threading.current_thread())),
        addresses=["10.0.0.0/8"],
    )

    async def main():
        await made.start()
        now = time.time()
        await send(path, b"nonsense\n" + ALERT.replace(b"10.0.0.7", b"192.0.2.1") + ALERT, made, 1)
        (event,) = made.events(now)
        assert (event.kind, event.node) == ("intrusion", "10.0.0.7")
        assert made.events(event.until) == []
        await made.close()

    asyncio.run(main())
    assert alarms == [(1.0, threading.main_thread())]
    counters = made.counters()
    assert (counters["eve_lines"], counters["eve_bad_json"], counters["eve_not_ours"]) == (3, 1, 1)
    assert not path.exists()


def test_a_reload_keeps_the_alarm_and_the_socket(path):
    old, new = (readers(EveSource(socket=str(path))) for _ in range(2))

    async def main():
        await old.start()
        await send(path, ALERT, old, 1)
        new.adopt(old)
        await new.start()
        await old.close()
        assert len(new.events(time.time())) == 1
        await send(path, ALERT, new, 1)
        await new.close()

    asyncio.run(main())
    assert not path.exists()


def test_a_start_that_fails_leaves_nothing_open(path):
    second = path.with_name("file")
    second.write_text("mine")
    made = readers(EveSource(socket=str(path)), EveSource(socket=str(second)))
    with pytest.raises(HostError, match="not a socket"):
        asyncio.run(made.start())
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_the_node_and_role_of_a_source_are_those_of_its_samples_unless_the_reader_names_them(exporter):
    made = readers(MemorySource(node="10.0.0.5", role="db"), MemorySource(), exporter.source(node="db-2"))
    of = {(s.metric, s.node, s.role) for s in made.read(1.0)}
    assert of == {("memory", "10.0.0.5", "db"), ("memory", "", ""), ("request_load", "db-2", "")}
    assert {"failures_memory_10_0_0_5", "failures_memory", "failures_prometheus_request_load_db_2"} <= set(
        made.counters()
    )
    own = Sample("cpu", 0.5, 1.0, node="db-3", role="cache")
    assert of_source(own, MemorySource(node="db-2", role="db")) is own
    asyncio.run(made.close())


def test_an_event_is_of_the_sources_node_unless_it_names_one_or_must_not(path):
    event = SecurityEvent("intrusion", 1.0, 1.0, 2.0)
    one, either = EveSource(socket="s", node="db-1"), EveSource(socket="s", node="db-1", affected="source")
    assert named(event, one).node == "db-1"
    assert named(replace(event, node="10.0.0.7"), one).node == "10.0.0.7"
    assert named(event, either).node == "", "a node that was only aimed at is not named"
    alarms = []
    made = readers(EveSource(socket=str(path), node="db-1"), on_alarm=alarms.append)

    async def main():
        await made.start()
        await send(path, ALERT.replace(b'"dest_ip": "10.0.0.7", ', b""), made, 1)
        await made.close()

    asyncio.run(main())
    assert [e.node for e in alarms] == [e.node for e in made.events(time.time())] == ["db-1"]
