"""A real Prometheus server in a namespace, which scrapes what its jobs say, or a page of the test's own.

with PrometheusHost(host, directory) as prometheus:
    prometheus.gauge.labels("acme", "10.1.0.1").set(40)
"""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Self

from hosts import until
from prometheus_client import CollectorRegistry, Gauge, start_http_server
from topology import Host

PORT, EXPORTER_PORT = 9090, 9100
GLOBAL = {"scrape_interval": "500ms", "scrape_timeout": "400ms"}


class Prometheus:
    """On loopback, with a data directory of its own. `jobs` are its `scrape_configs`."""

    def __init__(self, host: Host, directory: Path, *jobs: dict[str, Any]) -> None:
        self.host = host
        self.directory = directory
        self.jobs = jobs
        self.process: subprocess.Popen[Any] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, *arguments: str, wait: bool = True) -> None:
        self.directory.mkdir(exist_ok=True)
        file = self.directory / "prometheus.yml"
        file.write_text(json.dumps({"global": GLOBAL, "scrape_configs": self.jobs}))  # which is YAML, too
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
            return len(self.ask("up==1")) == len(self.jobs)
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


class PrometheusHost(Prometheus):
    """With a real exporter beside it, whose gauges the test sets."""

    def __init__(self, host: Host, directory: Path) -> None:
        # `instance` is as the exporter says it.
        targets = [{"targets": [f"127.0.0.1:{EXPORTER_PORT}"]}]
        super().__init__(host, directory, {"job_name": "tenants", "honor_labels": True, "static_configs": targets})
        self.registry = CollectorRegistry()
        self.gauge = Gauge("tenant_load", "Load", ["network", "instance"], registry=self.registry)
        self.latency = Gauge("probe_seconds", "To a region", ["network", "region"], registry=self.registry)

    def __enter__(self) -> Self:
        self._exporter, self._thread = self.host.call(
            start_http_server, EXPORTER_PORT, addr="127.0.0.1", registry=self.registry
        )
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._exporter.shutdown()
        self._thread.join()
        self._exporter.server_close()
