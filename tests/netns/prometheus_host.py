"""A real Prometheus server in a namespace, scraping a real exporter there.

with PrometheusHost(host, directory) as prometheus:
    prometheus.gauge.labels("acme", "10.1.0.1").set(40)
"""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from hosts import until
from prometheus_client import CollectorRegistry, Gauge, start_http_server
from topology import Host

PORT, EXPORTER_PORT = 9090, 9100
SCRAPE = """\
global: {scrape_interval: 500ms, scrape_timeout: 400ms}
scrape_configs:
  - job_name: tenants
    honor_labels: true  # `instance` as the exporter says it
    static_configs: [{targets: ["127.0.0.1:%d"]}]
"""


class PrometheusHost:
    """Both on loopback, with a data directory of their own."""

    def __init__(self, host: Host, directory: Path) -> None:
        self.host = host
        self.directory = directory
        self.registry = CollectorRegistry()
        self.gauge = Gauge("tenant_load", "Load", ["network", "instance"], registry=self.registry)
        self.latency = Gauge("probe_seconds", "To a region", ["network", "region"], registry=self.registry)
        self.process: subprocess.Popen[Any] | None = None

    def __enter__(self) -> PrometheusHost:
        self._exporter, self._thread = self.host.call(
            start_http_server, EXPORTER_PORT, addr="127.0.0.1", registry=self.registry
        )
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._exporter.shutdown()
        self._thread.join()
        self._exporter.server_close()

    def start(self, *arguments: str, wait: bool = True) -> None:
        self.directory.mkdir(exist_ok=True)
        file = self.directory / "prometheus.yml"
        file.write_text(SCRAPE % EXPORTER_PORT)
        with open(self.directory / "log", "ab") as log:
            self.process = self.host.start(
                "prometheus",
                f"--config.file={file}",
                f"--storage.tsdb.path={self.directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{PORT}",
                *arguments,
                stdout=log,
                stderr=log,
            )
        if wait:
            until(self.scraped, f"Prometheus scrapes; {self.directory / 'log'} has its log")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(15)
            self.process = None

    def scraped(self) -> bool:
        with suppress(OSError, ValueError):
            return bool(self.ask("up==1"))
        return False

    def ask(self, query: str) -> list[dict[str, Any]]:
        connection = self.host.call(self._connect)
        try:
            connection.request("GET", f"/api/v1/query?query={query}")
            return json.loads(connection.getresponse().read())["data"]["result"]
        finally:
            connection.close()

    def _connect(self) -> HTTPConnection:
        connection = HTTPConnection("127.0.0.1", PORT, timeout=2)
        connection.connect()
        return connection
