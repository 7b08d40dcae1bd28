"""Against a real HTTP server on loopback."""

import contextlib
import gzip
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from certificates import self_signed
from hypothesis import given
from hypothesis import strategies as st
from readings import SETTING

from scentd.collect import prometheus
from scentd.collect.prometheus import PrometheusReader, PrometheusSource
from scentd.collect.source import CollectError
from scentd.config import selector

PAGE = """\
# HELP http_requests_total Requests.
# TYPE http_requests_total counter
http_requests_total{code="200",path="/a"} 100
http_requests_total{code="200",path="/b"} 50
http_requests_total{code="500",path="/a"} 7
# TYPE queue gauge
queue 3
queue_odd{ 1
# TYPE legacy counter
legacy 5
# TYPE odd gauge
odd{n="1"} NaN
odd{n="2"} +Inf
odd{n="3"} 2
odd{n="4"} -Inf
# TYPE wait summary
wait_sum 12.5
wait_count 4
negative -4
"""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        page = self.server.pages.get(self.path)
        if page is None:
            self.send_error(404)
        elif page.startswith(b"redirect "):
            self.send_response(302)
            self.send_header("Location", page.split()[1].decode())
            self.end_headers()
        else:
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(page)

    def log_message(self, *arguments):
        return


@pytest.fixture(scope="module")
def server():
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.pages = {}
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield http
    http.shutdown()
    http.server_close()


@pytest.fixture
def page(server):
    """Serve a text and get a source's reader for it."""

    def serve(text, name, path="/metrics?x=1", **changes):
        server.pages[path] = text if isinstance(text, bytes) else text.encode()
        url = f"http://127.0.0.1:{server.server_port}{path}"
        return PrometheusReader(PrometheusSource(**{"url": url, "series": name, "full": 100.0, **changes}), SETTING)

    yield serve
    server.pages.clear()


def value(reader):
    (sample,) = reader.read(9.0)
    return sample.value


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("queue", 0.03),
        ("http_requests_total", 1.0),
        ('http_requests_total{path="/b"}', 0.5),
        ('http_requests_total{code=~"5.."}', 0.07),
        ("legacy", 0.05),
        ("wait_sum", 0.125),
        ("odd", 0.02),
        ("negative", 0.0),
    ],
)
def test_the_sum_of_the_matching_series(page, name, share):
    reader = page(PAGE, name)
    assert value(reader) == pytest.approx(share)


def test_the_sample_says_what_was_configured(page):
    (sample,) = page("load 50\n", "load", metric="database_load").read(9.0)
    assert (sample.metric, sample.at, sample.value) == ("database_load", 9.0, 0.5)


def test_an_odd_line_elsewhere_does_no_harm(page):
    assert value(page(PAGE, "queue")) == 0.03
    with pytest.raises(CollectError, match="not the Prometheus text format"):
        page(PAGE, "queue_odd").read(0.0)


def test_values_that_are_not_finite_are_left_out_and_counted(page):
    reader = page(PAGE, "odd")
    reader.read(0.0)
    assert reader.counters["prometheus_not_finite"] == 3
    none = page("odd NaN\n", "odd")
    assert none.read(0.0) == []


def test_the_rate_of_counters_with_a_reset(page, monkeypatch):
    clock = iter([10.0, 15.0, 20.0])
    monkeypatch.setattr(prometheus.time, "monotonic", lambda: next(clock))
    reader = page('c{i="1"} 1000\nc{i="2"} 500\n', "c", rate=True)
    assert reader.read(0.0) == []
    page('c{i="1"} 1100\nc{i="2"} 500\nc{i="3"} 999\n', "c")
    assert value(reader) == 0.2  # 100 in 5 s; the third is new
    page('c{i="1"} 50\nc{i="2"} 500\nc{i="3"} 999\n', "c")
    assert value(reader) == 0.1  # the first began again


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("other 1\n", "no series load"),
        ("", "no series load"),
        ("load x\n", "not the Prometheus text format"),
        ("load{a} 1\n", "Invalid labels"),
        (b"load \xff\n", "not UTF-8 at byte 5"),
        (gzip.compress(b"load 1\n", mtime=0), "a compressed page, though a plain one was asked for"),
        (b"x" * (prometheus.MAX_PAGE + 1), "more than 4 MiB"),
        ("redirect http://127.0.0.1:1/secret", "HTTP 302 .*to http://127.0.0.1:1/secret"),
    ],
)
def test_pages_that_give_nothing(page, text, reason):
    reader = page(text, "load")
    with pytest.raises(CollectError, match=f"http://127.0.0.1:.*{reason}"):
        reader.read(0.0)


def test_a_page_that_is_not_there(page, server):
    reader = page("load 1", "load")
    server.pages.clear()
    with pytest.raises(CollectError, match="HTTP 404 Not Found; correct `url`"):
        reader.read(0.0)


def test_a_page_of_four_megabytes_is_quick(page):
    text = "".join(f'noise_{i % 7}{{id="{i}"}} {i}\n' for i in range(120_000)) + "load 5\n"
    reader = page(text, "load")
    began = time.monotonic()
    assert value(reader) == 0.05
    assert time.monotonic() - began < 2.0


def test_a_line_of_megabytes_is_left_out(page):
    reader = page("load{" + 'a="",' * 500_000 + "} 1\nload 2\n", "load")
    assert value(reader) == 0.02
    assert reader.counters["prometheus_too_long"] == 1


def test_nobody_listens():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}/"
        reader = PrometheusReader(PrometheusSource(url=url, series="a", full=1.0), SETTING)
        with pytest.raises(CollectError, match="Connection refused; does the exporter listen there"):
            reader.read(0.0)


@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\nX: "])
def test_a_server_that_trickles_costs_the_timeout_and_no_more(greeting):
    listener = socket.create_server(("127.0.0.1", 0))

    def trickle():
        client, _ = listener.accept()
        with client, contextlib.suppress(OSError):
            client.sendall(greeting)
            for _ in range(100):
                client.sendall(b"a")
                time.sleep(0.05)

    threading.Thread(target=trickle, daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    reader = PrometheusReader(PrometheusSource(url=url, series="a", full=1.0, timeout=0.3), SETTING)
    began = time.monotonic()
    with pytest.raises(CollectError, match=r"no complete answer within 0\.3 s"):
        reader.read(0.0)
    assert time.monotonic() - began < 1.5
    listener.close()


@pytest.fixture
def authority(tmp_path):
    """A server context with a self-signed certificate for 127.0.0.1, and the certificate's file."""
    file, key = self_signed(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file, key)
    return context, file


@pytest.mark.parametrize("trusted", [True, False])
def test_https_is_verified(authority, monkeypatch, trusted):
    context, file = authority
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.pages = {"/": b"load 5\n"}
    http.socket = context.wrap_socket(http.socket, server_side=True)
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    url = f"https://127.0.0.1:{http.server_port}"
    reader = PrometheusReader(PrometheusSource(url=url, series="load", full=10.0), SETTING)
    if trusted:
        assert value(reader) == 0.5
    else:
        with pytest.raises(CollectError, match=r"self.signed certificate; add its authority"):
            reader.read(0.0)
    http.shutdown()
    http.server_close()


def test_something_that_is_not_http():
    listener = socket.create_server(("127.0.0.1", 0))

    def answer():
        client, _ = listener.accept()
        with client:
            client.recv(1000)
            client.sendall(b"SSH-2.0-x\r\n")

    threading.Thread(target=answer, daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    with pytest.raises(CollectError, match=r"SSH-2\.0"):
        PrometheusReader(PrometheusSource(url=url, series="a", full=1.0), SETTING).read(0.0)
    listener.close()


@given(st.text(alphabet='a{}="\\,#\n 1eN+.TYPE', max_size=60))
def test_any_text_is_values_or_a_value_error(text):
    try:
        values, _ = prometheus.select(f"a 1\n{text}", selector.parse("a"))
    except ValueError:
        return
    assert all(isinstance(v, float) for v in values.values())
