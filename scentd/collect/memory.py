"""Memory of this host: 1 - MemAvailable / MemTotal (/proc/meminfo)."""

from __future__ import annotations

from scentd.collect.proc import read_proc
from scentd.collect.source import CollectError, Reader, Setting
from scentd.config.sections import Source
from scentd.model import Sample


class MemorySource(Source, tag_field="kind", tag="memory"):
    """1 - MemAvailable / MemTotal (/proc/meminfo)."""

    def scale(self) -> str:
        return "all memory in use"


class MemoryReader(Reader):
    name = "memory"

    def __init__(self, source: MemorySource, _: Setting) -> None:
        """Its section says nothing that a reading depends on."""

    def read(self, now: float) -> list[Sample]:
        return [Sample("memory", used_share(read_proc("meminfo")), now)]


def used_share(text: str) -> float:
    """Raises CollectError."""
    values = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    try:
        total, available = (int(values[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
        return min(max(1.0 - available / total, 0.0), 1.0)
    except (KeyError, ValueError, IndexError, ZeroDivisionError):
        raise CollectError(
            "/proc/meminfo: no MemTotal and MemAvailable; take memory out of source on this host"
        ) from None
