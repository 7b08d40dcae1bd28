"""Prometheus metrics, made from the status document: the root process serves no HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from scentd.control.client import ask
from scentd.errors import HostError, ScentdError

# (name, help, key of the status document)
PLAIN = (
    ("scentd_stamped_packets", "Packets that left with a scent", "stamped"),
    ("scentd_accepted_packets", "Packets whose scent was accepted and stripped", "accepted"),
    ("scentd_absent_packets", "Packets without a scent where one was looked for", "absent"),
    ("scentd_profiles", "Verified profiles assembled", "profiles"),
    ("scentd_worker_restarts", "Workers that ended and were started anew", "worker_restarts"),
)
# (name, help, key, label)
LABELLED = (
    ("scentd_rejected_packets", "Packets refused, by reason", "rejected", "reason"),
    ("scentd_unstamped_packets", "Packets that left without a scent, by reason", "unstamped", "reason"),
    ("scentd_profile_errors", "Whole profiles that were wrong, by reason", "profile_errors", "reason"),
    ("scentd_reloads", "Configuration reloads", "reloads", "result"),
    ("scentd_beacons", "Beacons", "beacons", "result"),
    ("scentd_other", "Other counters", "other", "name"),
)


class StatusCollector:
    """Turns status documents into metric families. `status()` returns one."""

    def __init__(self, status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        up = GaugeMetricFamily("scentd_up", "Whether the daemon answered")
        up.add_metric([], float(status is not None))
        yield up
        if status is not None:
            yield from counters(status)
            yield from networks(status)


def counters(status: dict) -> Iterator[Metric]:
    for name, text, key in PLAIN:
        yield CounterMetricFamily(name, text, value=status[key])
    for name, text, key, label in LABELLED:
        family = CounterMetricFamily(name, text, labels=[label])
        for value, count in status[key].items():
            family.add_metric([value], count)
        yield family
    actuators = GaugeMetricFamily("scentd_actuator", "Counters of actuators and the decision log", labels=["name"])
    for name, count in status["actuators"].items():
        actuators.add_metric([name], count)
    yield actuators
    collectors = CounterMetricFamily("scentd_collector", "Counters of collectors", labels=["network", "name"])
    for network in status["networks"]:
        for name, count in network["collectors"].items():
            collectors.add_metric([network["name"], name], count)
    yield collectors


def networks(status: dict) -> Iterator[Metric]:
    levels = GaugeMetricFamily(
        "scentd_level", "Levels, 0 to 1: issued here or received", labels=["network", "metric", "direction"]
    )
    age = GaugeMetricFamily("scentd_profile_age_seconds", "Age of a peer's newest profile", labels=["network"])
    for network in status["networks"]:
        add_levels(levels, network["name"], network, "issued")
    for peer in status["peers"]:
        if peer["profile"]:
            add_levels(levels, peer["name"], peer["profile"], "received")
            age.add_metric([peer["name"]], peer["profile"]["age"])
    yield levels
    yield age


def add_levels(family: GaugeMetricFamily, network: str, source: dict, direction: str) -> None:
    for metric, value in source.get("levels", {}).items():
        family.add_metric([network, metric, direction], value)
    if source.get("overall") is not None:
        family.add_metric([network, "overall", direction], source["overall"])


def exposition(status: dict) -> str:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(lambda: status))
    return generate_latest(registry).decode()


def serve(path: str, host: str, port: int) -> None:
    """Serve until interrupted. Each scrape asks the daemon; if it does not answer, scentd_up is 0."""

    def status() -> dict | None:
        try:
            return ask(path, {"command": "status"})
        except ScentdError:
            return None

    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(status))
    try:
        start_http_server(port, host, registry)
    except OSError as error:
        raise HostError(f"--listen {host}:{port}: {error.strerror}; choose another port") from None
    threading.Event().wait()
