import asyncio
import json
import logging
import socket
import tempfile
import threading
import time
from pathlib import Path

import pytest

from scentd.collect.bandwidth import BandwidthSource
from scentd.collect.cpu import CpuSource
from scentd.collect.eve import EveSource
from scentd.collect.memory import MemorySource
from scentd.collect.prometheus import PrometheusSource
from scentd.collect.readers import Readers, highest_samples
from scentd.collect.tcp import TcpSource
from scentd.config.sections import Network
from scentd.errors import HostError
from scentd.model import Sample

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
