"""Latency and jitter of quiet paths: probes of our own, one a target and reading, at most one a second (echo.py).

    latency = median of a target's last three round trips / latency_full
    jitter  = mean difference of successive answers among the last eight probes / jitter_full

A probe is given up after `latency_full`: an answer that takes longer has the level 1.0 anyway, and other sources do not
wait for it. So one lost probe of three is nothing, and two make the level 1.0. Of several targets in a region the
median counts, the lower of two: one host that is down is not the path. The same of all targets is the network's.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Iterable
from ipaddress import ip_address
from itertools import pairwise
from statistics import fmean, median_low

from scentd.collect.echo import Round, Target
from scentd.collect.source import Reader, Setting
from scentd.config.schema import check_positive
from scentd.config.sections import Source
from scentd.config.units import Seconds
from scentd.model import Sample
from scentd.prefix import Address

MAX_TARGETS = 64
LEAST_PAUSE = 1.0  # seconds between two probes of a target
LATEST = 3  # round trips of which the median counts
KEPT = 8  # probes of which jitter is


class ProbeSource(Source, tag_field="kind", tag="probe"):
    """Latency and jitter of ICMP echoes or TCP connections to targets, for paths without traffic of their own."""

    targets: list[str]  # "10.2.0.1": ICMP echo; "10.2.0.1:443", "[fd00::1]:443": TCP
    latency_full: Seconds = 0.2  # this round trip scores 1.0; a probe without an answer until then is lost
    jitter_full: Seconds = 0.05
    source_address: list[str] = []  # our addresses that probes come from, one a family; default: as the kernel routes

    def mistakes(self, path: str) -> list[str]:
        problems = check_positive(self, path, "latency_full", "jitter_full")
        if not 1 <= len(self.targets) <= MAX_TARGETS:
            problems.append(f"{path}.targets: name 1 to {MAX_TARGETS}")
        seen = set()
        for i, text in enumerate(self.targets):
            try:
                target = parse_target(text)
            except ValueError:
                problems.append(f'{path}.targets[{i}]: {text!r}; write "10.2.0.1", "10.2.0.1:443" or "[fd00::1]:443"')
                continue
            if target in seen:
                problems.append(f"{path}.targets[{i}]: {text!r} stands there twice; take one away")
            seen.add(target)
        return problems + check_source_addresses(self.source_address, f"{path}.source_address")


def check_source_addresses(texts: list[str], path: str) -> list[str]:
    problems, versions = [], []
    for i, text in enumerate(texts):
        try:
            versions.append(ip_address(text).version)
        except ValueError:
            problems.append(f"{path}[{i}]: {text!r} is no address; write 10.1.0.1 or fd00:1::1")
    if len(set(versions)) < len(versions):
        problems.append(f"{path}: two addresses of one IP version; name one of each")
    return problems


def parse_target(text: str) -> Target:
    """Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if colon and (host.count(":") == 0 or (host.startswith("[") and host.endswith("]"))):
        if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
            raise ValueError(text)
        return Target(plain_address(host.removeprefix("[").removesuffix("]")), int(port))
    return Target(plain_address(text))


def plain_address(text: str) -> Address:
    address = ip_address(text)
    if "%" in text:  # an interface of this host is no part of a path
        raise ValueError(text)
    return address


class ProbeReader(Reader):
    """Counts probes, and what became of them."""

    COUNTERS = ("probe_sent", "probe_lost", "probe_unreachable", "probe_foreign")
    name = "probe"

    def __init__(self, source: ProbeSource, setting: Setting) -> None:
        self._source = source
        self._regions = setting.regions
        self._paths = {target: Path() for target in map(parse_target, source.targets)}
        self._sources: dict[int, str] = {ip_address(text).version: text for text in source.source_address}
        self._counters: Counter[str] = Counter(dict.fromkeys(self.COUNTERS, 0))
        self._probed_at = -math.inf  # CLOCK_MONOTONIC
        self._samples: list[Sample] = []

    def counts(self) -> dict[str, int]:
        return dict(self._counters)

    def read(self, now: float) -> list[Sample]:
        """New samples, or the last ones if the last probes were sent less than LEAST_PAUSE ago."""
        if time.monotonic() < self._probed_at + LEAST_PAUSE:
            return self._samples
        self._probed_at = time.monotonic()
        made = Round(list(self._paths), self._sources)
        made.run(self._source.latency_full)
        for target, path in self._paths.items():
            path.add(made.trips.get(target))
        self._counters["probe_sent"] += len(self._paths)
        self._counters["probe_lost"] += len(self._paths) - len(made.trips)
        self._counters["probe_unreachable"] += made.unreachable
        self._counters["probe_foreign"] += made.foreign
        self._samples = list(self._readings(now))
        return self._samples

    def _readings(self, now: float) -> Iterable[Sample]:
        regions: dict[str, list[Path]] = {"": list(self._paths.values())}
        for target, path in self._paths.items():
            if region := self._regions.get(target.address.packed):
                regions.setdefault(region, []).append(path)
        source = self._source
        for region, paths in regions.items():
            for metric, values, full in (
                ("latency", [path.latency() for path in paths], source.latency_full),
                ("jitter", [path.jitter() for path in paths], source.jitter_full),
            ):
                known = [value for value in values if value is not None]
                if known:
                    share = min(median_low(known) / full, 1.0)
                    yield Sample(metric, share, now, region=region)


class Path:
    """The last round trips to one target, in seconds; infinite ones are lost."""

    def __init__(self) -> None:
        self._trips: deque[float] = deque(maxlen=KEPT)

    def add(self, trip: float | None) -> None:
        self._trips.append(math.inf if trip is None else trip)

    def latency(self) -> float | None:
        """None before the second probe: a single lost one says nothing."""
        return median_low(list(self._trips)[-LATEST:]) if len(self._trips) > 1 else None

    def jitter(self) -> float | None:
        answered = [trip for trip in self._trips if trip != math.inf]
        pairs = list(pairwise(answered))
        return fmean(abs(later - earlier) for earlier, later in pairs) if pairs else None
