"""The collecting role on real sources: what goes into Samples, and what a reload keeps."""

import asyncio
import json
import time

from scentd.bus.local import LocalBus
from scentd.kinds import config_from
from scentd.model import Notice, Samples
from scentd.roles.collector import CollectorRole

ALERT = {"event_type": "alert", "src_ip": "192.0.2.9", "dest_ip": "192.0.2.1"}
ALERT["alert"] = {"severity": 1, "category": "A Network Trojan was detected", "signature": "test"}


def config(*sources: dict, **network):
    one = {"name": "n", "addresses": ["192.0.2.0/24"], "interval": "1s", "source": list(sources), **network}
    return config_from({"network": [one]})


class Collecting:
    def __init__(self) -> None:
        self.samples: list[Samples] = []
        self.notices: list[Notice] = []
        bus = LocalBus()
        bus.subscribe(Samples, self.samples.append)
        bus.subscribe(Notice, self.notices.append)
        self.role = CollectorRole(bus, "here")

    async def next(self, condition=lambda _: True, seconds: float = 10.0) -> Samples:
        number, end = len(self.samples), time.monotonic() + seconds
        while True:
            for made in self.samples[number:]:
                if condition(made):
                    return made
            assert time.monotonic() < end, self.samples[number:]
            await asyncio.sleep(0.01)


def run(story) -> None:
    async def whole() -> None:
        collecting = Collecting()
        try:
            await story(collecting)
        finally:
            await collecting.role.stop()

    asyncio.run(whole())


def test_samples_name_their_network_and_collector_and_who_watches():
    async def story(it):
        await it.role.replace(config({"kind": "memory"}))
        made = await it.next()
        assert (made.network, made.collector, made.watched, made.alarm) == ("n", "here", False, False)
        assert [s.metric for s in made.samples] == ["memory"]
        assert abs(made.at - time.time()) < 5

    run(story)


def test_where_a_sensor_reports_quiet_means_no_threat_and_an_alert_is_told_at_once(tmp_path):
    async def story(it):
        path = str(tmp_path / "eve.sock")
        await it.role.replace(config({"kind": "memory"}, {"kind": "eve", "socket": path}, interval="60s"))
        first = await it.next(lambda made: made.samples)
        assert first.watched
        assert first.events == ()
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(json.dumps(ALERT).encode() + b"\n")
        alarm = await it.next(lambda made: made.alarm, seconds=5)
        [event] = alarm.events
        assert event.node in ("192.0.2.9", "192.0.2.1")
        assert alarm.samples == first.samples, "an alarm goes with the samples at hand"
        assert [n.event for n in it.notices] == ["alarm"]
        writer.close()

    run(story)


def test_a_reload_keeps_what_a_sensor_said_and_ends_networks_that_are_gone(tmp_path):
    async def story(it):
        source = {"kind": "eve", "socket": str(tmp_path / "eve.sock")}
        await it.role.replace(config(source))
        _, writer = await asyncio.open_unix_connection(source["socket"])
        writer.write(json.dumps(ALERT).encode() + b"\n")
        await it.next(lambda made: made.events)
        await it.role.replace(config(source, interval="2s"))
        assert (await it.next(lambda made: not made.alarm)).events
        await it.role.replace(config_from({}))
        assert it.role.counters("n") == {}
        number = len(it.samples)
        await asyncio.sleep(0.3)
        assert len(it.samples) == number
        writer.close()

    run(story)


def test_a_source_that_cannot_be_opened_is_an_error_at_the_start_and_keeps_the_old_ones_later(tmp_path, caplog):
    async def story(it):
        wrong = {"kind": "eve", "socket": str(tmp_path / "absent" / "eve.sock")}
        (tmp_path / "absent").write_text("a file where a directory should be")
        (problem,) = await it.role.replace(config(wrong))
        assert "absent" in problem
        assert it.role.counters("n") == {}
        await it.role.replace(config({"kind": "memory"}))
        await it.next()
        (problem,) = await it.role.replace(config({"kind": "memory"}, wrong))
        assert problem.endswith("its old sources stay")
        assert (await it.next()).samples

    run(story)
