"""The [bus] section: each mistake has its path and a way out."""

import pytest

from scentd.errors import ConfigError
from scentd.kinds import config_from
from scentd.wire import keys

KEY = str(keys.identity(b"\1" * 32).public)
HOST = {"name": "p", "public_key": KEY, "duties": ["sign"]}
BUS = {"url": ["nats://10.0.0.1:4222"], "name": "h", "key_file": "k", "host": [HOST]}
COLLECTS = {"name": "n", "stamp": False, "source": [{"kind": "memory"}]}
STAMPS = {"name": "n", "stamp": True, "public_key": KEY}
PEER = {"name": "q", "public_key": KEY, "addresses": ["10.2.0.0/16"]}


def mistakes(bus: dict, **more) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config_from({"network": [COLLECTS], "bus": bus, **more})
    return caught.value.problems


def test_right_ones():
    config = config_from({"network": [COLLECTS], "bus": BUS})
    assert config.bus.used
    assert not config.bus.allocates
    assert config_from({"network": [STAMPS], "bus": BUS, "peer": [PEER]}).network[0].stamps
    allocator = BUS | {"host": [{"name": "v", "public_key": KEY, "duties": ["verify"]}]}
    assert config_from({"bus": allocator, "peer": [PEER]}).bus.allocates
    assert not config_from({"network": [COLLECTS | {"key_file": "k"}]}).bus.used


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"url": []}, "bus.url: missing; nats://HOST:4222, or take bus.name away"),
        ({"url": ["10.0.0.1:4222"]}, "bus.url[0]: '10.0.0.1:4222'; write nats://HOST:4222, or tls://HOST:4222"),
        ({"url": ["http://h"]}, "bus.url[0]: 'http://h'; write nats://HOST:4222"),
        ({"url": ["nats://me:pw@h"]}, "bus.url[0]: holds a password, which the log would show; use certificates"),
        ({"name": ""}, "bus.name: missing; the name by which the other hosts know this one"),
        ({"key_file": ""}, "bus.key_file: missing; make one with `scentd keygen`"),
        ({"certificate_file": "c"}, "bus.certificate_file: goes with certificate_key_file; write both or none"),
        ({"replicas": 9}, "bus.replicas: "),
        ({"host": []}, "bus.host: none signs for n; name the profiler"),
        ({"host": [HOST, HOST]}, "bus.host[1].name: "),
        ({"host": [HOST | {"duties": []}]}, "bus.host[0].duties: missing; one or more of collect, sign"),
        ({"host": [HOST | {"duties": ["store"]}]}, "bus.host[0].duties: "),
        ({"host": [HOST | {"public_key": "x"}]}, "bus.host[0].public_key: "),
        ({"host": [HOST | {"networks": ["m"]}]}, "bus.host[0].networks: no network of this host is named 'm'"),
    ],
    ids=str,
)
def test_mistakes(change, text):
    assert any(problem.startswith(text) for problem in mistakes(BUS | change)), mistakes(BUS | change)


def test_who_stamps_what_others_sign_needs_the_networks_key():
    found = mistakes(BUS, network=[{"name": "n", "stamp": True}], peer=[PEER])
    assert any(problem.startswith("network[0].public_key: missing") for problem in found)


def test_an_allocator_for_others_verifies_nothing_itself():
    host = {"name": "v", "public_key": KEY, "duties": ["verify"]}
    found = mistakes(BUS | {"host": [host]}, network=[{"name": "n", "key_file": "k"}], peer=[PEER])
    assert any("this host verifies peers itself" in problem for problem in found)


@pytest.mark.parametrize("name", ["public_key", "next_public_key"])
def test_keys_of_a_network_are_keys(name):
    found = mistakes(BUS, network=[STAMPS | {name: "odd"}], peer=[PEER])
    assert any(problem.startswith(f"network[0].{name}: ") for problem in found)
