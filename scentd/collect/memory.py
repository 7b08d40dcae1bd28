"""Memory: the share in use that cannot be had back at once, of this host (/proc/meminfo) or of a cgroup's limit."""

from __future__ import annotations

from scentd.collect.cgroup import Cgroup, check_cgroup, reader_name
from scentd.collect.proc import read_proc
from scentd.collect.source import CollectError, Reader, Setting
from scentd.config.sections import Source
from scentd.model import Sample


class MemorySource(Source, tag_field="kind", tag="memory"):
    """1 - MemAvailable / MemTotal (/proc/meminfo), or what a cgroup uses of its limit."""

    cgroup: str = ""  # of a guest, a container, a service; "": this host

    def scale(self) -> str:
        return "all memory of its limit in use" if self.cgroup else "all memory in use"

    def mistakes(self, path: str) -> list[str]:
        return check_cgroup(self.cgroup, path) if self.cgroup else []


class MemoryReader(Reader):
    def __init__(self, source: MemorySource, _: Setting) -> None:
        self.name = reader_name("memory", source.cgroup)
        self._cgroup = Cgroup(source.cgroup) if source.cgroup else None

    def read(self, now: float) -> list[Sample]:
        total, available = parse_meminfo(read_proc("meminfo"))
        if self._cgroup is not None:
            share = used_bytes(self._cgroup) / min([total, *limits(self._cgroup)])
        else:
            share = 1.0 - available / total
        return [Sample("memory", min(max(share, 0.0), 1.0), now)]


def parse_meminfo(text: str) -> tuple[int, int]:
    """Bytes in all (never 0) and available. Raises CollectError."""
    values = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    try:
        total, available = (int(values[key].split()[0]) << 10 for key in ("MemTotal", "MemAvailable"))
    except (KeyError, ValueError, IndexError):
        total = 0
    if total <= 0:
        raise CollectError("/proc/meminfo: no MemTotal and MemAvailable; take memory out of source on this host")
    return total, available


def used_bytes(cgroup: Cgroup) -> int:
    """What it and those below it use, but for cached files and what else the kernel has back at once.

    MemAvailable leaves the same out for the host. Raises CollectError.
    """
    directory = cgroup.accounting("memory")
    if directory.unified:
        used, cached = "memory.current", ["active_file", "inactive_file", "slab_reclaimable"]
    else:
        used, cached = "memory.usage_in_bytes", ["total_active_file", "total_inactive_file"]
    return cgroup.number(directory, used) - cgroup.value(directory, "memory.stat", *cached)


def limits(cgroup: Cgroup) -> list[int]:
    """The lowest of each kind of limit of the cgroup and those above it; never 0. Raises CollectError."""
    directory = cgroup.directory("memory")
    if directory.unified:  # above memory.high the kernel takes memory back and slows down what runs there
        found = [cgroup.lowest(directory, file) for file in ("memory.max", "memory.high")]
    else:
        found = [cgroup.value(directory, "memory.stat", "hierarchical_memory_limit")]
    return [max(limit, 1) for limit in found if limit is not None]
