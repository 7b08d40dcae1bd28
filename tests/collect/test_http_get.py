"""What test_prometheus.py does not see of a GET: its headers, and answers that are no page."""

import pytest
from http_serving import serving

from scentd.collect import http_get
from scentd.collect.source import CollectError

LIMITS = http_get.Limits(2.0, 1024 * 1024, "ask for less", "the server")


@pytest.fixture
def server():
    def answer(request):
        request.server.asked.append((request.path, dict(request.headers)))
        return request.server.answer

    with serving(answer) as made:
        made.asked = []
        yield made


def get(server, path="/a?b=c", **headers):
    return http_get.get(server.url + path, "the place", headers, LIMITS)


def test_the_answer_of_any_status_with_the_headers_that_were_asked_for(server):
    server.answer = 422, {}, b"why"
    answer = get(server, Authorization="Bearer x")
    assert (answer.status, answer.content, answer.summary) == (422, b"why", "HTTP 422 Unprocessable Entity")
    ((path, headers),) = server.asked
    assert path == "/a?b=c"
    assert headers["Authorization"] == "Bearer x"
    assert "gzip" not in headers["Accept-Encoding"]


def test_a_redirect_is_not_followed(server):
    server.answer = 301, {"Location": f"{server.url}/elsewhere"}, b""
    assert get(server).summary.startswith("HTTP 301 Moved Permanently to http://127.0.0.1:")
    assert len(server.asked) == 1


def test_the_environment_names_no_proxy(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    server.answer = 200, {}, b"page"
    assert get(server).content == b"page"


def test_errors_name_the_place_and_not_the_url(server):
    server.answer = 200, {}, bytes(LIMITS.size + 1)
    with pytest.raises(CollectError, match=r"^the place: more than 1 MiB; ask for less$"):
        get(server)
    with pytest.raises(CollectError, match=r"^the place: .*Connection refused.*does the server listen there"):
        http_get.get("http://127.0.0.1:1/secret", "the place", {}, LIMITS)
