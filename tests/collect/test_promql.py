"""VectorAnswers of Prometheus' HTTP API, also such as a real server would not give."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scentd.collect import promql
from scentd.collect.promql import VectorAnswers
from scentd.collect.source import CollectError
from scentd.config.prometheus_server import PrometheusServer, Query
from scentd.model import Sample
from scentd.prefix import PrefixMap

NOW = 1_800_000_000.0
QUERY = Query(metric="database_load", query="x", full=100.0, role="db")
NETWORKS = {"acme": PrefixMap([("10.1.0.0/24", True), ("fd00:1::/64", True)]), "any": None}


def answers(query=QUERY, **server):
    return VectorAnswers(PrometheusServer("p", "http://x", query=[query], **server), query, NETWORKS, Counter())


def series(value="50", at=NOW, network="acme", **labels):
    return {"metric": {"__name__": "x", "network": network, **labels}, "value": [at, value]}


def reply(*result, kind="vector", **more):
    return json.dumps({"status": "success", "data": {"resultType": kind, "result": list(result)}, **more}).encode()


def counted(it):
    return {name: count for name, count in it._counters.items() if count and name != "series"}


def test_a_series_is_a_sample_of_the_network_and_node_of_its_labels():
    it = answers()
    found = it.samples(
        reply(
            series("50", instance="10.1.0.7:9187", le="0.1"),
            series("250", network="any", instance="db-1:9187", role="replica", region="eu-west"),
            series("-3", network="any"),
        ),
        NOW,
    )
    assert found == {
        "acme": [Sample("database_load", 0.5, NOW, "10.1.0.7", "db")],
        "any": [
            Sample("database_load", 1.0, NOW, "db-1", "replica", "eu-west"),
            Sample("database_load", 0.0, NOW, "", "db"),
        ],
    }
    assert counted(it) == {}
    assert it._counters["series"] == 3


def test_the_labels_have_the_names_that_the_server_gives_them():
    it = answers(network_label="tenant", node_label="pod", role_label="app", region_label="to")
    (sample,) = it.samples(
        reply({"metric": {"tenant": "any", "pod": "a", "app": "b", "to": "c", "network": "x"}, "value": [NOW, "1"]}),
        NOW,
    )["any"]
    assert (sample.node, sample.role, sample.region) == ("a", "b", "c")


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        ({"network": "other"}, "unknown_network"),
        ({"network": ""}, "no_network"),
        ({"instance": "10.2.0.1:9100"}, "foreign_node"),
        ({"instance": "[fd00:2::1]:9100"}, "foreign_node"),
        ({"instance": "n" * 256}, "bad_name"),
        ({"instance": "a\nb"}, "bad_name"),
        ({"role": "db;metric=cpu;level=high"}, "bad_name"),
        ({"region": "a;b"}, "bad_name"),
        ({"value": "NaN"}, "not_finite"),
        ({"value": "+Inf"}, "not_finite"),
        ({"value": "-Inf"}, "not_finite"),
        ({"value": "much"}, "no_value"),
        ({"value": ""}, "no_value"),
        ({"at": NOW - 11}, "clock_off"),
        ({"at": NOW + 11}, "clock_off"),
    ],
)
def test_what_cannot_be_a_sample_is_counted(labels, name):
    it = answers()
    assert it.samples(reply(series(**labels), series()), NOW) == {"acme": [Sample("database_load", 0.5, NOW, "", "db")]}
    assert counted(it) == {name: 1}


def test_a_histogram_has_no_value():
    it = answers()
    histogram = {"metric": {"network": "any"}, "histogram": [NOW, {"count": "3", "sum": "2"}]}
    assert it.samples(reply(histogram), NOW) == {}
    assert counted(it) == {"no_value": 1}


def test_of_two_series_of_one_node_the_higher_counts():
    it = answers()
    two = [series("70", instance="10.1.0.7:9187"), series("20", instance="10.1.0.7:9188")]
    for order in (two, two[::-1]):
        (sample,) = it.samples(reply(*order), NOW)["acme"]
        assert sample.value == 0.7
    assert counted(it) == {"twice": 2}


@pytest.mark.parametrize(("off", "at"), [(-9.0, NOW - 9.0), (9.0, NOW), (0.25, NOW)])
def test_a_clock_that_is_nearly_ours_dates_the_sample_but_never_in_the_future(off, at):
    (sample,) = answers().samples(reply(series(at=NOW + off)), NOW)["acme"]
    assert sample.at == at


@pytest.mark.parametrize(("off", "words"), [(600, "600 s ahead of ours"), (-75.5, "76 s behind ours")])
def test_a_server_with_another_time_is_named(off, words):
    it = answers()
    with pytest.raises(CollectError, match=f"its clock is {words}; set both by NTP"):
        it.samples(reply(series(at=NOW + off), series(at=NOW + off)), NOW)
    assert counted(it) == {"clock_off": 2}


@pytest.mark.parametrize("at", ["1e999", "-1e999"])
def test_an_endless_time_is_off(at):
    content = reply(series()).replace(str(NOW).encode(), at.encode())
    with pytest.raises(CollectError):
        answers().samples(content, NOW)


def test_warnings_say_that_something_is_missing():
    it = answers()
    assert it.samples(reply(series(), warnings=["store 3 is away"], infos=["x"]), NOW)["acme"]
    assert counted(it) == {"partial": 1}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (reply(), "gives no series; try the query"),
        (reply(NOW, "7", kind="scalar"), "gives a 'scalar' instead of a vector; correct `query`"),
        (reply(NOW, "text", kind="string"), "gives a 'string' instead"),
        (reply({"metric": {}, "values": [[NOW, "1"]]}, kind="matrix"), "gives a 'matrix' instead"),
        (reply({"metric": 7}), "not a vector of Prometheus: .*correct `url`"),
        (reply({"metric": {"network": 7}, "value": [NOW, "1"]}), "not a vector of Prometheus"),
        (reply({"metric": {}, "value": [NOW, 1]}), "not a vector of Prometheus"),
        (b"<html>", "not an answer of Prometheus"),
        (b"", "not an answer of Prometheus"),
        (b'"\xff"', "not an answer of Prometheus"),
        (b"[" * 100_000, "not an answer of Prometheus"),
        (b"{}", "no reason: ; correct `query`"),
        (b'{"status":"success"}', "no reason"),
        (b'{"status":"error","errorType":"execution","error":"too\\nmany"}', r"execution: too\\nmany; correct"),
    ],
)
def test_answers_that_give_nothing(content, reason):
    with pytest.raises(CollectError, match=reason) as error:
        answers().samples(content, NOW)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700


def test_a_million_series_are_refused_before_they_are_made(monkeypatch):
    one = b'{"metric":{"network":"any"},"value":[1800000000,"1"]},'
    content = b'{"status":"success","data":{"resultType":"vector","result":[' + (one * 1_000_000)[:-1] + b"]}}"
    monkeypatch.setattr(promql, "reply_of", None)
    with pytest.raises(CollectError, match="more than 500000 series; aggregate"):
        answers().samples(content, NOW)


@pytest.mark.parametrize(
    ("label", "node", "length"),
    [
        ("10.1.0.7", "10.1.0.7", 4),
        ("10.1.0.7:9100", "10.1.0.7", 4),
        ("[fd00::1]:9100", "fd00::1", 16),
        ("fd00:0::1", "fd00::1", 16),
        ("db-1.example:9187", "db-1.example", 0),
        ("db-1", "db-1", 0),
        ("a:b:9", "a:b:9", 0),
        ("a\0:9", "a\0", 0),
        ("", "", 0),
    ],
)
def test_a_node_is_its_label_without_the_port(label, node, length):
    found, packed = promql.node_of(label)
    assert (found, len(packed)) == (node, length)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["metric", "value", "network", "instance", "x"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_samples_or_a_named_error(result):
    try:
        found = answers().samples(reply(result), NOW)
    except CollectError:
        return
    assert all(0.0 <= s.value <= 1.0 for samples in found.values() for s in samples)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_named_error(content):
    with pytest.raises(CollectError):
        answers().samples(content, NOW)
