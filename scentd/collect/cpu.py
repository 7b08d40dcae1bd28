"""Processor of this host: the busy share of all processors since the last reading (/proc/stat)."""

from __future__ import annotations

from scentd.collect.proc import read_proc
from scentd.collect.source import CollectError, Reader, Setting
from scentd.config.sections import Source
from scentd.model import Sample


class CpuSource(Source, tag_field="kind", tag="cpu"):
    """Busy share of all processors (/proc/stat)."""

    def scale(self) -> str:
        return "all processors busy"


class CpuReader(Reader):
    name = "cpu"

    def __init__(self, source: CpuSource, _: Setting) -> None:
        self._last: tuple[int, int] | None = None

    def read(self, now: float) -> list[Sample]:
        last, self._last = self._last, parse_stat(read_proc("stat"))
        if last is None:
            return []
        share = busy_share(last, self._last)
        return [] if share is None else [Sample("cpu", share, now)]


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
