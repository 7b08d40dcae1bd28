"""Pressure stall information: the share of time in which something had to wait for processor, memory or disk.

Of this host (/proc/pressure) or of a cgroup (v2 alone). The kernel counts the time (Linux, accounting/psi.rst).
"""

from __future__ import annotations

import re
import time
from typing import Literal

from scentd.collect.cgroup import UNIFIED, Cgroup, check_cgroup, reader_name
from scentd.collect.proc import read_proc
from scentd.collect.rate import Rates
from scentd.collect.source import CollectError, Reader, Setting
from scentd.config.sections import Source
from scentd.model import Sample

NO_PSI = "boot with psi=1 on a kernel with CONFIG_PSI, or take pressure out of source on this host"


class PressureSource(Source, tag_field="kind", tag="pressure"):
    """Share of the time in which something waited for a resource (PSI)."""

    resource: Literal["cpu", "memory", "io"]
    metric: str  # a standard metric, or one of [network.metrics]
    stalled: Literal["some", "full"] = "some"  # at least one of what runs there waited; all of it did at once
    cgroup: str = ""  # of a guest, a container, a service, on v2; "": this host

    def scale(self) -> str:
        return f"{self.stalled} waits for {self.resource} all the time"

    def private_metric(self) -> str:
        return self.metric

    def mistakes(self, path: str) -> list[str]:
        problems = check_cgroup(self.cgroup, path) if self.cgroup else []
        if not self.cgroup and (self.resource, self.stalled) == ("cpu", "full"):
            problems.append(f'{path}.stalled: "full" is always 0 for the processors of a host; write "some"')
        return problems


class PressureReader(Reader):
    def __init__(self, source: PressureSource, _: Setting) -> None:
        self.name = reader_name(f"pressure_{source.resource}", source.cgroup)
        self._source = source
        self._cgroup = Cgroup(source.cgroup) if source.cgroup else None
        self._rates: Rates[int] = Rates()  # by the cgroup's number, 0 for the host

    def read(self, now: float) -> list[Sample]:
        source = self._source
        number, text = 0, ""
        if self._cgroup is not None:
            number, text = cgroup_pressure(self._cgroup, source.resource)
        else:
            text = host_pressure(source.resource)
        stalled = {number: stalled_seconds(text, source.stalled)}
        share = self._rates.update(stalled, time.monotonic()).get(number)
        return [] if share is None else [Sample(source.metric, min(share, 1.0), now)]


def host_pressure(resource: str) -> str:
    """Raises CollectError."""
    try:
        return read_proc(f"pressure/{resource}")
    except CollectError as error:
        raise CollectError(f"{error} {NO_PSI}") from None


def cgroup_pressure(cgroup: Cgroup, resource: str) -> tuple[int, str]:
    """The cgroup's number, and its file. Raises CollectError."""
    directory = cgroup.directory(UNIFIED)
    number = cgroup.identity(directory)
    try:
        return number, cgroup.read(directory, f"{resource}.pressure")
    except CollectError as error:
        raise CollectError(f"{error} {NO_PSI}") from None


def stalled_seconds(text: str, which: str) -> float:
    """The time since the beginning in which some or all waited. Raises CollectError."""
    match = re.search(rf"^{which} .*\btotal=(\d+)$", text, re.MULTILINE)
    if match is None:
        raise CollectError(f"pressure: no total of {which!r} in {text[:80]!r}; {NO_PSI}")
    return int(match[1]) / 1e6
