"""The collector of a Prometheus server: whose Samples it publishes, and how often. The server is a stand-in of a few
lines: how a real one is asked is in tests/netns/test_promql_daemon.py.
"""

import asyncio
import json
import time
from itertools import pairwise

import pytest
from http_serving import serving

from scentd.bus.local import LocalBus
from scentd.kinds import config_from
from scentd.model import Samples
from scentd.roles.collector import CollectorRole


@pytest.fixture
def http():
    def answer(request):
        names = ("fast", "slow", "stranger")
        result = [{"metric": {"network": n, "instance": "db:1"}, "value": [time.time(), "5"]} for n in names]
        request.server.asked += 1
        data = {"status": "success", "data": {"resultType": "vector", "result": result}}
        return 200, {}, json.dumps(data).encode()

    with serving(answer) as server:
        server.asked = 0
        yield server


def config(http, *names):
    networks = [
        {"name": "fast", "interval": "1s", "addresses": [], "key_file": "k", "sign": True},
        {"name": "slow", "interval": "3s", "addresses": ["10.2.0.0/24"], "key_file": "k", "sign": True},
    ]
    networks[0]["addresses"] = ["10.1.0.0/24"]
    query = {"metric": "cpu", "query": "x", "full": 10}
    servers = [{"name": n, "url": http.url, "query": [query]} for n in names]
    return config_from({"network": networks, "prometheus_server": servers})


async def published(samples, count):
    end = time.monotonic() + 15
    while len(samples) < count:
        assert time.monotonic() < end, samples
        await asyncio.sleep(0.01)


def test_each_network_gets_its_own_samples_as_often_as_its_interval(http):
    async def story():
        samples: list[Samples] = []
        bus = LocalBus()
        bus.subscribe(Samples, samples.append)
        role = CollectorRole(bus)
        try:
            assert await role.replace(config(http, "p")) == []
            while [s.network for s in samples].count("slow") < 2:
                await published(samples, len(samples) + 1)
            (status,) = role.servers()
        finally:
            await role.stop()
        return samples, status

    samples, status = asyncio.run(story())
    asked = {name: [s.samples[0].at for s in samples if s.network == name] for name in ("fast", "slow")}
    assert len(asked["fast"]) > len(asked["slow"]) >= 2
    assert all(later - earlier > 2.4 for earlier, later in pairwise(asked["slow"]))
    assert {s.collector for s in samples} == {"prometheus/p"}
    assert all([(one.metric, one.value, one.node) for one in s.samples] == [("cpu", 0.5, "db")] for s in samples)
    assert status.counters["unknown_network"] >= 4
    (query,) = status.queries
    assert (query.metric, query.samples, query.networks, query.why_not) == ("cpu", 2, 2, "")


def test_a_reload_ends_the_old_questions(http):
    async def story():
        role = CollectorRole(LocalBus())
        try:
            await role.replace(config(http, "p", "q"))
            assert [s.name for s in role.servers()] == ["p", "q"]
            await role.replace(config(http, "r"))
            assert [s.name for s in role.servers()] == ["r"]
            await role.replace(config(http))
            await asyncio.sleep(0.3)  # a question on its way
            before = http.asked
            await asyncio.sleep(1.5)
            assert http.asked == before
        finally:
            await role.stop()

    asyncio.run(story())
