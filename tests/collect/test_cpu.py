import os
import time

import pytest
from groups import SPIN, Group
from readings import SETTING

from scentd.collect import cpu
from scentd.collect.cgroup import UNIFIED, Cgroup, mounted
from scentd.collect.cpu import CpuReader, CpuSource, busy_share, parse_stat, usable_processors, used_seconds
from scentd.collect.memory import MemoryReader, MemorySource
from scentd.collect.rate import MIN_ELAPSED
from scentd.collect.source import CollectError

STAT = "cpu  100 20 30 800 50 5 6 7 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"


def spin(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def test_busy_share_of_this_host():
    reader = CpuReader(CpuSource(), SETTING)
    assert reader.read(5.0) == []
    spin(0.15)
    (sample,) = reader.read(6.0)
    assert (sample.metric, sample.at) == ("cpu", 6.0)
    assert 0.0 < sample.value <= 1.0


def test_stolen_time_is_busy_and_iowait_is_not():
    assert parse_stat(STAT) == (168, 1018)


@pytest.mark.parametrize(
    ("before", "after", "share"),
    [
        ((10, 100), (35, 150), 0.5),
        ((10, 100), (10, 100), None),
        ((10, 100), (5, 50), None),
        ((10, 100), (5, 150), 0.0),
        ((10, 100), (90, 150), 1.0),
    ],
)
def test_busy_share(before, after, share):
    assert busy_share(before, after) == share


@pytest.mark.parametrize("text", ["", "\n", "intr 1 2", "cpu 1 2 3", "cpu a b c d e f g h"])
def test_odd_stat(text):
    with pytest.raises(CollectError, match="/proc/stat"):
        parse_stat(text)


# ---- of a cgroup, on this host's kernel ----


def read_twice(reader, seconds=0.6):
    reader.read(1.0)
    time.sleep(seconds)
    (sample,) = reader.read(2.0)
    return sample


@pytest.mark.netns
def test_what_spins_in_a_cgroup_fills_its_quota_and_nobody_elses():
    """A tenth of a processor: it has that beside any other load."""
    with Group("busy") as busy, Group("idle") as idle:
        busy.limit("cpu", v1={"cpu.cfs_quota_us": 10_000}, v2={"cpu.max": "10000 100000"})
        busy.start(*SPIN)
        sleeper = CpuReader(CpuSource(cgroup=idle.name), SETTING)
        sleeper.read(1.0)
        sample = read_twice(CpuReader(CpuSource(cgroup=f"/{busy.name}", role="vm"), SETTING))
        assert (sample.metric, sample.at, sample.role) == ("cpu", 2.0, "vm")
        assert 0.5 < sample.value <= 1.0
        assert sleeper.read(2.0)[0].value < 0.01


@pytest.mark.netns
@pytest.mark.skipif(not {"cpuacct", UNIFIED} <= mounted().keys(), reason="needs v1 and v2 (hybrid)")
def test_a_unit_for_which_v1_does_not_account_is_read_from_v2():
    with Group("hybrid") as group:
        for path in {path for controller, path in group.paths.items() if controller != UNIFIED}:
            path.rmdir()
        group.paths = {UNIFIED: group.paths[UNIFIED]}
        group.start(*SPIN)
        assert 0.0 < read_twice(CpuReader(CpuSource(cgroup=group.name), SETTING)).value <= 1.0
        with pytest.raises(CollectError, match=r"memory.current: No such file .*MemoryAccounting=yes"):
            MemoryReader(MemorySource(cgroup=group.name), SETTING).read(1.0)


@pytest.mark.netns
def test_the_lowest_limit_above_counts_and_the_hosts_processors_without_one():
    with Group("slice") as above, Group("vm", above) as group:
        reading = Cgroup(group.name)
        assert usable_processors(reading) == os.cpu_count()
        above.limit("cpu", v1={"cpu.cfs_quota_us": 25_000}, v2={"cpu.max": "25000 100000"})
        assert usable_processors(reading) == 0.25
        above.limit("cpu", v1={"cpu.cfs_quota_us": -1}, v2={"cpu.max": "max"})
        group.limit("cpuset", v1={"cpuset.cpus": 0}, v2={"cpuset.cpus": 0})
        assert usable_processors(reading) == 1


@pytest.mark.netns
def test_a_cgroup_made_anew_begins_again():
    reader = None
    for _ in range(2):
        with Group("anew", name=f"scanew{os.getpid()}") as group:
            reader = reader or CpuReader(CpuSource(cgroup=group.name), SETTING)
            group.start(*SPIN)
            assert reader.read(1.0) == []
            time.sleep(0.2)
            assert reader.read(2.0)[0].value > 0.0
        with pytest.raises(CollectError, match="it is there while something runs in it"):
            reader.read(3.0)
        time.sleep(MIN_ELAPSED)


# ---- v2, from files as Linux 6.1 writes them ----


def test_time_used_in_v2(unified):
    unified(cpu__stat="usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\nnr_periods 0")
    number, seconds = used_seconds(Cgroup("a/b"))
    assert (number > 0, seconds) == (True, 2.5)


@pytest.mark.parametrize(
    ("own", "above", "cpus", "usable"),
    [
        ("max 100000", "max 100000", "0-15", 16),
        ("150000 100000", "max 100000", "0-15", 1.5),
        ("max 100000", "50000 100000", "0-15", 0.5),
        ("max 100000", "max 100000", "0-3,8", 5),
        ("6400000 100000", "max 100000", "0-31", 16),
    ],
)
def test_processors_in_v2(unified, monkeypatch, own, above, cpus, usable):
    monkeypatch.setattr(cpu.os, "cpu_count", lambda: 16)
    unified(cpu__max=own, cpuset__cpus__effective=cpus)
    unified("a", cpu__max=above)
    assert usable_processors(Cgroup("a/b")) == usable


@pytest.mark.parametrize("text", ["x 100000", "100 0", "1"])
def test_odd_quota_in_v2(unified, text):
    unified(cpu__max=text)
    with pytest.raises(CollectError, match=r"cgroup a/b: cpu or cpuset limits: .*report"):
        usable_processors(Cgroup("a/b"))
