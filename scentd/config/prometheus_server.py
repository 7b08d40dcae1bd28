"""The [[prometheus_server]] section: a Prometheus server that is asked by PromQL, a query a metric for all networks."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from msgspec import Meta

from scentd.config.schema import Name, Table, check_http_url, check_positive, duplicates, suggestion
from scentd.config.units import Seconds

LOOPBACK = ("127.0.0.1", "::1", "localhost")
LabelName = Annotated[str, Meta(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$")]


class Query(Table):
    """One metric of all networks."""

    metric: str
    query: Annotated[str, Meta(min_length=1, max_length=4096)]  # PromQL; its labels say whose each series is
    full: Annotated[float, Meta(gt=0)]  # this value scores 1.0
    role: str = ""  # of series without `role_label`


class PrometheusServer(Table):
    name: Name
    url: str  # what stands before /api/v1/query
    token_file: str = ""  # a bearer token, mode 0600; "credential:NAME" for a systemd credential
    timeout: Seconds = 2.0
    network_label: LabelName = "network"  # its value is a network.name
    node_label: LabelName = "instance"  # an address or name; a port behind it is left out
    role_label: LabelName = "role"
    region_label: LabelName = "region"  # the series is of the path to this region
    query: list[Query] = []

    def mistakes(self, path: str) -> list[str]:
        problems = check_positive(self, path, "timeout")
        problems += check_http_url(self.url, f"{path}.url", "http://127.0.0.1:9090")
        if "?" in self.url or "#" in self.url:
            problems.append(f"{path}.url: {self.url!r}; leave out what begins with ? or #")
        if self.token_file and urlsplit(self.url).scheme == "http" and urlsplit(self.url).hostname not in LOOPBACK:
            problems.append(f"{path}.url: would show the token to everybody on the way; write https://...")
        labels = (self.network_label, self.node_label, self.role_label, self.region_label)
        if len(set(labels)) < len(labels):
            problems.append(f"{path}: two of its labels have one name; each has a meaning of its own")
        if not self.query:
            problems.append(f"{path}.query: missing; it begins with [[prometheus_server.query]]")
        problems += [
            f"{path}.query[{i}].full: must be a number" for i, q in enumerate(self.query) if q.full == float("inf")
        ]
        return problems


def check_servers(servers: list[PrometheusServer], metrics: set[str], signed: bool) -> list[str]:
    """`metrics`: the names that a network of ours knows. `signed`: whether a network is signed here."""
    problems = duplicates("prometheus_server", [s.name for s in servers])
    if servers and not signed:
        problems.append("prometheus_server: no network takes its samples; write sign = true in [[network]]")
    return problems + [
        f"prometheus_server[{i}].query[{j}].metric: no such metric{suggestion(query.metric, sorted(metrics))}"
        for i, server in enumerate(servers)
        for j, query in enumerate(server.query)
        if query.metric not in metrics
    ]
