"""Webhooks to a real HTTP server."""

import json
import time

import msgspec
import pytest
from deeds import DECISION, server

from scentd.act import webhook
from scentd.errors import HostError

__all__ = ["server"]  # the fixture


def test_a_decision_is_posted_as_json(server):
    assert webhook.post(server.url, msgspec.json.encode(DECISION), 2.0) == 200
    ((path, kind, body),) = server.seen
    assert (path, kind) == ("/secret", "application/json")
    assert json.loads(body)["reason"] == DECISION.reason


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "/elsewhere"])
def test_redirects_are_not_followed(server, status, location):
    server.answers, server.location = [status], location
    with pytest.raises(HostError, match=f"answered {status} .*; name the final address in do.url"):
        webhook.post(server.url, b"{}", 2.0)
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://127.0.0.1/", "data:,x", "nonsense", "http://", "http://[::1"]
)
def test_other_addresses_are_refused(url):
    with pytest.raises(HostError, match="webhook "):
        webhook.post(url, b"{}", 1.0)


def test_errors_are_host_errors_without_the_secret(server):
    server.answers = [500]
    with pytest.raises(HostError, match=r"http://127.0.0.1: answered 500") as raised:
        webhook.post(server.url, b"{}", 2.0)
    assert "secret" not in str(raised.value)
    with pytest.raises(HostError, match="refused"):
        webhook.post("http://127.0.0.1:1/secret", b"{}", 2.0)


def test_a_server_that_hangs_costs_the_timeout(server):
    server.answers = ["hang"]
    start = time.monotonic()
    with pytest.raises(HostError, match="timed out"):
        webhook.post(server.url, b"{}", 0.2)
    assert time.monotonic() - start < 2


def test_the_proxy_of_the_environment_does_not_count(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert webhook.post(server.url, b"{}", 2.0) == 200
