"""The [[prometheus_server]] section: what may be written, and each mistake with its way out."""

import pytest

from scentd.errors import ConfigError
from scentd.kinds import config_from

QUERY = {"metric": "cpu", "query": "avg by (network, instance) (x)", "full": 1.0}
SERVER = {"name": "p", "url": "http://127.0.0.1:9090", "query": [QUERY]}


def load(server=SERVER, **network):
    one = {"name": "n", "key_file": "k", "sign": True, **network}
    return config_from({"network": [one], "prometheus_server": [server]})


def test_a_server_with_its_defaults():
    (server,) = load().prometheus_server
    assert (server.network_label, server.node_label, server.timeout) == ("network", "instance", 2.0)
    (query,) = server.query
    assert (query.metric, query.full, query.role) == ("cpu", 1.0, "")


def test_a_network_of_ours_may_name_the_metric():
    server = {**SERVER, "query": [{**QUERY, "metric": "queue_depth"}]}
    assert load(server, metrics={"queue_depth": 16}).prometheus_server[0].query[0].metric == "queue_depth"


@pytest.mark.parametrize("url", ["https://prometheus.example/a", "http://localhost:1", "http://[::1]:9090"])
def test_a_token_may_go_by_tls_or_within_this_host(url):
    assert load({**SERVER, "url": url, "token_file": "credential:t"})


@pytest.mark.parametrize(
    ("changes", "mistake"),
    [
        ({"url": "ftp://x"}, "url: 'ftp://x'; write http://127.0.0.1:9090"),
        ({"url": "http://user@x"}, "without a user"),
        ({"url": "http://x/?a=b"}, r"leave out what begins with \? or #"),
        ({"url": "http://x", "token_file": "t"}, "url: would show the token .*write https"),
        ({"timeout": "0s"}, "timeout: must be more than 0"),
        ({"node_label": "network"}, "two of its labels have one name"),
        ({"role_label": "a-b"}, "role_label"),
        ({"query": []}, r"query: missing; it begins with \[\[prometheus_server.query\]\]"),
        ({"query": [{**QUERY, "metric": "cpus"}]}, r"query\[0\].metric: no such metric; did you mean cpu\?"),
        ({"query": [{**QUERY, "full": 0}]}, r"query\[0\].full"),
        ({"query": [{**QUERY, "full": float("inf")}]}, r"query\[0\].full: must be a number"),
        ({"query": [{**QUERY, "query": ""}]}, r"query\[0\].query"),
        ({"query": [{**QUERY, "query": "x" * 5000}]}, r"query\[0\].query"),
    ],
)
def test_mistakes(changes, mistake):
    with pytest.raises(ConfigError, match=rf"prometheus_server\[0\].*{mistake}"):
        load({**SERVER, **changes})


def test_somebody_must_take_the_samples():
    with pytest.raises(ConfigError, match="no network takes its samples; write sign = true"):
        load(sign=False, stamp=True)


def test_names_are_unique():
    with pytest.raises(ConfigError, match=r"prometheus_server\[1\].name: 'p' is the name of another"):
        config_from({"network": [{"name": "n", "key_file": "k", "sign": True}], "prometheus_server": [SERVER, SERVER]})
