"""Against nginx and its real exporter on loopback. PostgreSQL's is in tests/netns/test_three_nodes.py."""

import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import suppress

import pytest
from readings import SETTING

from scentd.collect.prometheus import PrometheusReader, PrometheusSource

NGINX = """\
daemon off;
master_process off;
pid {directory}/pid;
error_log {directory}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{ return 200 "ok"; }}
        location /stub_status {{ stub_status; }}
    }}
}}
"""


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as page:  # noqa: S310 -- of ours
        return page.read()


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """The URLs of an nginx and of its exporter's page."""
    directory = tmp_path_factory.mktemp("nginx")
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        port, listen = one.getsockname()[1], two.getsockname()[1]
    (directory / "conf").write_text(NGINX.format(directory=directory, port=port))
    site, page = f"http://127.0.0.1:{port}/", f"http://127.0.0.1:{listen}/metrics"
    exporter = [f"-nginx.scrape-uri={site}stub_status", f"-web.listen-address=127.0.0.1:{listen}", "-nginx.retries=50"]
    with open(directory / "log", "wb") as log:
        processes = [
            subprocess.Popen(argv, stdout=log, stderr=log)
            for argv in (["nginx", "-c", f"{directory}/conf"], ["prometheus-nginx-exporter", *exporter])
        ]
    try:
        end = time.monotonic() + 15
        while True:
            with suppress(OSError):
                get(page)
                break
            assert time.monotonic() < end, (directory / "log").read_text()
            time.sleep(0.1)
        yield site, page
    finally:
        for process in processes:
            process.terminate()
            process.wait()


def test_requests_a_second_of_nginx_are_a_load(servers):
    site, page = servers
    source = PrometheusSource(url=page, series="nginx_http_requests_total", rate=True, full=1e6)
    reader = PrometheusReader(source, SETTING)
    assert reader.read(1.0) == [], "one value of a counter says nothing"
    began = time.monotonic()
    for _ in range(200):
        get(site)
    [sample] = reader.read(2.0)
    requests = sample.value * 1e6 * (time.monotonic() - began)
    assert 150 < requests < 260, "but for what the clocks of reader and test differ by"
    assert sample.metric == "request_load"


def test_connections_of_nginx_are_a_level(servers):
    site, page = servers
    reader = PrometheusReader(PrometheusSource(url=page, series="nginx_connections_active", full=10), SETTING)
    [idle] = reader.read(1.0)
    port = int(site.rstrip("/").rsplit(":", 1)[1])
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(5)]
    try:
        end = time.monotonic() + 15
        while (busy := reader.read(2.0)[0].value) < idle.value + 0.49:
            assert time.monotonic() < end, f"{busy} of {idle.value} and five more"
    finally:
        for end in held:
            end.close()
