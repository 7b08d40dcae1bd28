"""Processor: the busy share since the last reading, of this host (/proc/stat) or of what a cgroup may use."""

from __future__ import annotations

import os
import time

from scentd.collect.cgroup import UNLIMITED, Cgroup, check_cgroup, processors, reader_name
from scentd.collect.proc import read_proc
from scentd.collect.rate import Rates
from scentd.collect.source import CollectError, Reader, Setting
from scentd.config.sections import Source
from scentd.model import Sample


class CpuSource(Source, tag_field="kind", tag="cpu"):
    """Busy share of all processors (/proc/stat), or of the processors that a cgroup may use."""

    cgroup: str = ""  # of a guest, a container, a service; "": this host

    def scale(self) -> str:
        return "all processors that it may use busy" if self.cgroup else "all processors busy"

    def mistakes(self, path: str) -> list[str]:
        return check_cgroup(self.cgroup, path) if self.cgroup else []


class CpuReader(Reader):
    def __init__(self, source: CpuSource, _: Setting) -> None:
        self.name = reader_name("cpu", source.cgroup)
        self._cgroup = Cgroup(source.cgroup) if source.cgroup else None
        self._last: tuple[int, int] | None = None
        # The key is the cgroup's number: another one under the same name begins at 0.
        self._rates: Rates[int] = Rates()

    def read(self, now: float) -> list[Sample]:
        share = self._host_share() if self._cgroup is None else self._cgroup_share(self._cgroup)
        return [] if share is None else [Sample("cpu", share, now)]

    def _host_share(self) -> float | None:
        last, self._last = self._last, parse_stat(read_proc("stat"))
        return None if last is None else busy_share(last, self._last)

    def _cgroup_share(self, cgroup: Cgroup) -> float | None:
        number, seconds = used_seconds(cgroup)
        rates = self._rates.update({number: seconds}, time.monotonic())
        return min(rates[number] / usable_processors(cgroup), 1.0) if number in rates else None


def parse_stat(text: str) -> tuple[int, int]:
    """Busy and total ticks of all processors since boot. Raises CollectError.

    Stolen time is busy: the hypervisor gave it to another guest and this host
    cannot have it. Guest time is in user time already.
    """
    fields = text.partition("\n")[0].split()
    try:
        if fields[0] != "cpu":
            raise ValueError
        user, nice, system, idle, iowait, irq, softirq, steal = map(int, fields[1:9])
    except (ValueError, IndexError):
        raise CollectError("/proc/stat: no line of all processors; take cpu out of source on this host") from None
    busy = user + nice + system + irq + softirq + steal
    return busy, busy + idle + iowait


def busy_share(before: tuple[int, int], after: tuple[int, int]) -> float | None:
    """None if no tick has passed. A processor gone offline makes sums go back: clamped, not negative."""
    busy, total = after[0] - before[0], after[1] - before[1]
    return min(max(busy / total, 0.0), 1.0) if total > 0 else None


def used_seconds(cgroup: Cgroup) -> tuple[int, float]:
    """The cgroup's number, and the processor time of all that ran in it and below. Raises CollectError."""
    directory = cgroup.accounting("cpuacct")
    number = cgroup.identity(directory)  # first: of a cgroup made anew in between the next reading begins again
    if directory.unified:
        return number, cgroup.value(directory, "cpu.stat", "usage_usec") / 1e6
    return number, cgroup.number(directory, "cpuacct.usage") / 1e9


def usable_processors(cgroup: Cgroup) -> float:
    """The lowest of its quota, quotas above it, processors that it may run on, and the host's. Raises CollectError."""
    try:
        return min([float(os.cpu_count() or 1), *quotas(cgroup), *allowed(cgroup)])
    except (ValueError, ZeroDivisionError) as error:
        raise CollectError(f"cgroup {cgroup.name}: cpu or cpuset limits: {error}; please report it") from None


def quotas(cgroup: Cgroup) -> list[float]:
    """Processors' worth of time of each limit of the cgroup and those above it (CPUQuota=)."""
    directory = cgroup.directory("cpu")
    files = ["cpu.max"] if directory.unified else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
    limits = cgroup.words_upwards(directory, *files)
    return [int(quota) / int(period) for quota, period in limits if quota not in UNLIMITED]


def allowed(cgroup: Cgroup) -> list[float]:
    """How many processors it and those above it may run on (AllowedCPUs=), where that is set."""
    directory = cgroup.directory("cpuset")
    file = "cpuset.cpus.effective" if directory.unified else "cpuset.effective_cpus"
    return [float(processors(text)) for text, *_ in filter(None, cgroup.words_upwards(directory, file))]
