import os
import select
import sys
from pathlib import Path

import pytest
from groups import Group
from readings import SETTING

from scentd.collect.cgroup import Cgroup
from scentd.collect.memory import MemoryReader, MemorySource, limits, parse_meminfo, used_bytes
from scentd.collect.source import CollectError
from scentd.model import Sample

MIB = 1 << 20


def test_memory_of_this_host():
    (sample,) = MemoryReader(MemorySource(), SETTING).read(5.0)
    assert sample == Sample("memory", sample.value, 5.0)
    assert 0.0 < sample.value < 1.0


def test_bytes_in_all_and_available():
    assert parse_meminfo("MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 250 kB\n") == (1_024_000, 256_000)


@pytest.mark.parametrize(("available", "share"), [(250, 0.75), (2000, 0.0)])
def test_share_of_the_host(monkeypatch, available, share):
    text = f"MemTotal: 1000 kB\nMemAvailable: {available} kB\n"
    monkeypatch.setattr("scentd.collect.memory.read_proc", lambda name: text)
    assert MemoryReader(MemorySource(), SETTING).read(1.0)[0].value == share


@pytest.mark.parametrize(
    "text", ["", "MemTotal: 5 kB", "MemTotal: 0 kB\nMemAvailable: 0 kB", "MemTotal:\nMemAvailable:"]
)
def test_odd_meminfo(text):
    with pytest.raises(CollectError, match="/proc/meminfo"):
        parse_meminfo(text)


# ---- of a cgroup, on this host's kernel ----

HOLD = "import sys; held = b'x' * (int(sys.argv[1]) << 20); print('holds', flush=True); sys.stdin.read()"
CACHE = "import sys; open(sys.argv[1], 'rb').read(1 << 26); print('read', flush=True); sys.stdin.read()"


def start(group, *argv):
    process = group.start(sys.executable, "-c", *argv, stdin=-1, stdout=-1)
    assert select.select([process.stdout], [], [], 30)[0], "the process says that it is ready"
    process.stdout.readline()


@pytest.mark.netns
def test_what_a_cgroup_holds_is_a_share_of_its_limit():
    with Group("holds") as group:
        group.limit("memory", v1={"memory.limit_in_bytes": 200 * MIB}, v2={"memory.max": 200 * MIB})
        start(group, HOLD, "100")
        (sample,) = MemoryReader(MemorySource(cgroup=group.name, role="vm"), SETTING).read(5.0)
        assert sample == Sample("memory", sample.value, 5.0, role="vm")
        assert 0.5 < sample.value < 0.65


@pytest.mark.netns
def test_cached_files_are_no_use_of_memory(tmp_path):
    """The file is written outside of the cgroup and put out of the cache: whoever reads it then is charged."""
    file = tmp_path / "file"
    with file.open("wb") as out:
        out.write(os.urandom(60 * MIB))
        os.fsync(out.fileno())
        os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with Group("cache") as group:
        group.limit("memory", v1={"memory.limit_in_bytes": 200 * MIB}, v2={"memory.max": 200 * MIB})
        start(group, CACHE, str(file))
        reading = Cgroup(group.name)
        directory = reading.directory("memory")
        charged = reading.number(directory, "memory.current" if directory.unified else "memory.usage_in_bytes")
        if charged < 60 * MIB:
            pytest.skip(f"the file system of {tmp_path} keeps no cache of files")
        assert used_bytes(reading) < 30 * MIB


@pytest.mark.netns
def test_without_a_limit_it_is_a_share_of_the_host():
    total, _ = parse_meminfo(Path("/proc/meminfo").read_text())
    with Group("slice") as above, Group("vm", above) as group:
        assert min([total, *limits(Cgroup(group.name))]) == total
        above.limit("memory", v1={"memory.limit_in_bytes": 64 * MIB}, v2={"memory.max": 64 * MIB})
        assert limits(Cgroup(group.name)) == [64 * MIB]


@pytest.mark.netns
def test_a_cgroup_that_is_not_there():
    with pytest.raises(CollectError, match=r"cgroup sc-none: .*No such file .*correct `cgroup`"):
        MemoryReader(MemorySource(cgroup="sc-none"), SETTING).read(1.0)


# ---- v2, from files as Linux 6.1 writes them ----

STAT = "anon 1000\nfile 900\nkernel 300\nshmem 100\ninactive_file 500\nactive_file 300\nslab_reclaimable 100"


def test_use_and_limits_in_v2(unified):
    unified(memory__current=3000, memory__stat=STAT, memory__max="max", memory__high="max")
    assert used_bytes(Cgroup("a/b")) == 2100
    assert limits(Cgroup("a/b")) == []
    unified("a", memory__max=8400)
    assert MemoryReader(MemorySource(cgroup="a/b"), SETTING).read(1.0)[0].value == 0.25
    unified(memory__high=4200)
    assert MemoryReader(MemorySource(cgroup="a/b"), SETTING).read(1.0)[0].value == 0.5
    unified(memory__max=0)
    assert MemoryReader(MemorySource(cgroup="a/b"), SETTING).read(1.0)[0].value == 1.0


def test_a_controller_that_is_off_in_v2(unified):
    with pytest.raises(CollectError, match=r"cgroup a/b: .*memory.max|memory.current.*MemoryAccounting=yes"):
        MemoryReader(MemorySource(cgroup="a/b"), SETTING).read(1.0)
