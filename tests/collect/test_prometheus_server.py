"""The reader against a hostile HTTP server: what a real Prometheus would not do. tests/netns/test_promql_daemon.py has
the real one.
"""

import json
import logging
import os
import threading
import time
from urllib.parse import parse_qs, urlsplit

import pytest
from http_serving import serving

from scentd.collect import prometheus_server
from scentd.collect.prometheus_server import ServerReader
from scentd.config.prometheus_server import PrometheusServer, Query

NETWORKS = {"acme": None, "other": None}
TOKEN = "secret-token.of~some/length+1=="  # noqa: S105


@pytest.fixture
def http():
    def answer(request):
        parts = urlsplit(request.path)
        query = parse_qs(parts.query)
        request.server.asked.append((parts.path, query, request.headers.get("Authorization")))
        status, body = request.server.answers[query["query"][0]]
        return status, {}, body() if callable(body) else body

    with serving(answer) as server:
        server.asked, server.answers = [], {}
        yield server


@pytest.fixture
def reader(http):
    made = []

    def make(*queries, **changes):
        queries = [Query(metric=metric, query=text, full=full) for metric, text, full in queries]
        settings = {"name": "p", "url": http.url, "query": queries, **changes}
        made.append(ServerReader(PrometheusServer(**settings), NETWORKS))
        return made[-1]

    yield make
    for one in made:
        one.close()


def reply(*values, **labels):
    """A vector of now with one series for each (network, value)."""
    result = [{"metric": {"network": n, **labels}, "value": [time.time(), str(v)]} for n, v in values]
    return 200, json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode()


def values(found):
    return {network: {s.metric: s.value for s in samples} for network, samples in found.items()}


def test_each_query_is_asked_once_for_all_networks(http, reader):
    http.answers = {"a{x=~'1|2'} > 0": reply(("acme", 1), ("other", 2)), "b": reply(("acme", 30))}
    it = reader(("cpu", "a{x=~'1|2'} > 0", 4), ("memory", "b", 100), url=f"{http.url}/mimir/")
    assert values(it.read()) == {"acme": {"cpu": 0.25, "memory": 0.3}, "other": {"cpu": 0.5}}
    assert sorted((path, query["query"], query["timeout"]) for path, query, _ in http.asked) == [
        ("/mimir/api/v1/query", ["a{x=~'1|2'} > 0"], ["2000ms"]),
        ("/mimir/api/v1/query", ["b"], ["2000ms"]),
    ]
    assert [(q.samples, q.networks, q.why_not) for q in it.queries] == [(2, 2, ""), (1, 1, "")]
    assert it.counters()["series"] == 3


def test_of_two_queries_for_one_metric_the_higher_counts(http, reader):
    http.answers = {"a": reply(("acme", 10)), "b": reply(("acme", 70))}
    assert values(reader(("cpu", "a", 100), ("cpu", "b", 100)).read()) == {"acme": {"cpu": 0.7}}


def refused(kind, text):
    return json.dumps({"status": "error", "errorType": kind, "error": text}).encode()


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (400, refused("bad_data", "parse error"), "HTTP 400 Bad Request, bad_data: parse error; correct `query`"),
        (422, refused("execution", "many-to-many"), "execution: many-to-many; correct `query`"),
        (503, refused("timeout", "query timed out"), "timeout: query timed out; repair the server"),
        (503, b"<html>\xff", "HTTP 503 Service Unavailable; repair the server"),
        (401, b"", "HTTP 401 Unauthorized; correct `token_file`"),
        (404, b"{}", "HTTP 404 Not Found; correct `url`"),
        (302, b"", "HTTP 302 Found; correct `url`"),
        (200, b"\x1f\x8b\x08", "a compressed page"),
    ],
)
def test_a_query_that_fails_says_why_once_and_hinders_no_other(http, reader, caplog, status, body, words):
    http.answers = {"bad": (status, body), "good": reply(("acme", 1))}
    it = reader(("cpu", "bad", 1), ("memory", "good", 1))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert values(it.read()) == {"acme": {"memory": 1.0}}
        assert words in it.queries[0].why_not
        assert it.counters()["failures"] == 2
        (told,) = caplog.messages
        assert told.startswith("prometheus_server p, cpu: ")
        http.answers["bad"] = reply(("other", 1))
        assert values(it.read())["other"] == {"cpu": 1.0}
    assert caplog.messages[1:] == ["prometheus_server p, cpu: works again"]
    assert it.queries[0].why_not == ""


def test_a_slow_query_costs_its_timeout_and_no_other(http, reader):
    gone = threading.Event()
    http.answers = {"slow": (200, lambda: gone.wait(10) and b""), "good": reply(("acme", 1))}
    it = reader(("cpu", "slow", 1), ("memory", "good", 1), timeout=0.2)
    assert values(it.read()) == {"acme": {"memory": 1.0}}
    assert "no complete answer within 0.2 s" in it.queries[0].why_not
    gone.set()


def test_an_endless_answer_ends(http, reader, monkeypatch):
    monkeypatch.setattr(prometheus_server, "MAX_ANSWER", 1 << 20)
    http.answers = {"a": (200, bytes(1 << 21))}
    it = reader(("cpu", "a", 1))
    assert it.read() == {}
    assert "more than 1 MiB; aggregate in `query`" in it.queries[0].why_not


def test_a_defect_is_told_and_hinders_nobody(http, reader, monkeypatch):
    http.answers = {"a": reply(("acme", 1))}
    it = reader(("cpu", "a", 1))
    monkeypatch.setattr(it.queries[0]._answers, "samples", lambda *_: 1 / 0)
    assert it.read() == {}
    assert "unexpected ZeroDivisionError" in it.queries[0].why_not


@pytest.fixture
def token_file(tmp_path):
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_text(TOKEN + "\n")
    return file


def test_the_token_goes_to_the_server_and_nowhere_else(http, reader, token_file, caplog):
    http.answers = {"a": (401, TOKEN.encode())}
    it = reader(("cpu", "a", 1), token_file=str(token_file))
    with caplog.at_level(logging.DEBUG):
        it.read()
        token_file.write_text("another")  # the next question has it
        it.read()
    assert [authorization for *_, authorization in http.asked] == [f"Bearer {TOKEN}", "Bearer another"]
    assert TOKEN not in caplog.text
    assert TOKEN not in it.queries[0].why_not
    assert TOKEN not in repr(vars(it.queries[0]))


def test_a_credential_of_systemd(http, reader, token_file, monkeypatch):
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(token_file.parent))
    http.answers = {"a": reply(("acme", 1))}
    reader(("cpu", "a", 1), token_file="credential:token").read()  # noqa: S106
    assert http.asked[0][2] == f"Bearer {TOKEN}"


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (b"two words", 0o600, "is no bearer token"),
        (b"a\r\nHost: x", 0o600, "is no bearer token"),
        (b"", 0o600, "is no bearer token"),
        (b"a" * 20_000, 0o600, "is no bearer token"),
        (TOKEN.encode(), 0o640, "others may read it"),
        (None, 0, "No such file or directory; write the server's bearer token there"),
    ],
)
def test_a_token_that_is_none_is_never_sent(http, reader, token_file, content, mode, words):
    if content is None:
        token_file.unlink()
    else:
        token_file.write_bytes(content)
        os.chmod(token_file, mode)
    it = reader(("cpu", "a", 1), token_file=str(token_file))
    assert it.read() == {}
    assert words in it.queries[0].why_not
    assert TOKEN not in it.queries[0].why_not
    assert http.asked == []
