"""What the configuration refuses so that no source meets it later."""

import pytest

from scentd.errors import ConfigError
from scentd.kinds import config_from

PROMETHEUS = {"kind": "prometheus", "url": "http://[::1]:9187/metrics", "series": "load", "full": 5.0}


def network(*collect):
    return {"name": "a", "key_file": "k", "source": list(collect)}


def problems(*networks):
    try:
        config_from({"network": list(networks)})
    except ConfigError as error:
        return error.problems
    return []


@pytest.mark.parametrize(
    ("source", "where"),
    [
        ({"kind": "bandwidth", "interface": "eth0", "capacity": "0mbit"}, "capacity: must be more than 0"),
        ({"kind": "tcp", "latency_full": "0s"}, "latency_full: must be more than 0"),
        ({"kind": "tcp", "jitter_full": "-1s"}, "jitter_full: must be more than 0"),
        ({"kind": "eve", "socket": "s", "hold": "0s"}, "hold: must be more than 0"),
        (PROMETHEUS | {"timeout": "0s"}, "timeout: must be more than 0"),
        (PROMETHEUS | {"full": float("inf")}, "full: must be more than 0"),
        (PROMETHEUS | {"series": "load{"}, "series: 'load{' selects no series"),
        (PROMETHEUS | {"url": "file:///etc/shadow"}, "url: 'file:///etc/shadow'; write http://host:port"),
        (PROMETHEUS | {"url": "http://"}, "url: "),
        (PROMETHEUS | {"url": "http://host:99999/"}, "url: "),
        (PROMETHEUS | {"url": "http://me:secret@host/"}, "url: "),
        (PROMETHEUS | {"url": "http://["}, "url: "),
    ],
)
def test_a_source_that_could_never_work(source, where):
    (problem,) = problems(network(source))
    assert problem.startswith(f"network[0].source[0].{where}")


def test_sources_that_can_work():
    assert problems(network(PROMETHEUS, PROMETHEUS | {"url": "https://host/"}, {"kind": "tcp"})) == []


def test_two_sources_on_one_socket():
    eve = {"kind": "eve", "socket": "/run/eve.sock"}
    first, second = {"addresses": ["10.0.0.1"]}, {"name": "b", "addresses": ["10.0.0.2"]}
    assert problems(network(eve) | first, network(eve) | second) == [
        "network.source: two sources listen on '/run/eve.sock'; give each a socket of its own"
    ]
