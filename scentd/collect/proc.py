"""Processor and memory of this host, from /proc (proc(5))."""

from __future__ import annotations

from pathlib import Path

from scentd.collect import CollectError
from scentd.config import CpuSource, MemorySource
from scentd.model import Sample


class Cpu:
    """Busy share of all processors since the last reading."""

    def __init__(self, source: CpuSource) -> None:
        self.name = "cpu"
        self._role = source.role
        self._last: tuple[int, int] | None = None

    def read(self, now: float) -> list[Sample]:
        last, self._last = self._last, parse_stat(read_proc("stat"))
        if last is None:
            return []
        share = busy_share(last, self._last)
        return [] if share is None else [Sample("cpu", share, now, role=self._role)]


class Memory:
    """1 - MemAvailable / MemTotal."""

    def __init__(self, source: MemorySource) -> None:
        self.name = "memory"
        self._role = source.role

    def read(self, now: float) -> list[Sample]:
        return [Sample("memory", used_share(read_proc("meminfo")), now, role=self._role)]


def read_proc(name: str) -> str:
    try:
        return Path("/proc", name).read_text()
    except OSError as error:
        raise CollectError(f"/proc/{name}: {error.strerror}; is /proc mounted (unit: ProcSubset=all)?") from None


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
        raise CollectError("/proc/stat: no line of all processors; take cpu out of collect on this host") from None
    busy = user + nice + system + irq + softirq + steal
    return busy, busy + idle + iowait


def busy_share(before: tuple[int, int], after: tuple[int, int]) -> float | None:
    """None if no tick has passed. A processor gone offline makes sums go back: clamped, not negative."""
    busy, total = after[0] - before[0], after[1] - before[1]
    return min(max(busy / total, 0.0), 1.0) if total > 0 else None


def used_share(text: str) -> float:
    """Raises CollectError."""
    values = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    try:
        total, available = (int(values[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
        return min(max(1.0 - available / total, 0.0), 1.0)
    except (KeyError, ValueError, IndexError, ZeroDivisionError):
        raise CollectError(
            "/proc/meminfo: no MemTotal and MemAvailable; take memory out of collect on this host"
        ) from None
