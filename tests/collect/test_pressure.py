import time

import pytest
from groups import SPIN, Group
from readings import SETTING

from scentd.collect import proc
from scentd.collect.cgroup import UNIFIED, mounted
from scentd.collect.pressure import PressureReader, PressureSource, stalled_seconds
from scentd.collect.source import CollectError

TEXT = "some avg10=9.74 avg60=8.30 avg300=6.89 total=74364501\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=12\n"


def read_twice(reader, seconds):
    assert reader.read(1.0) == []
    time.sleep(seconds)
    (sample,) = reader.read(2.0)
    return sample


@pytest.mark.parametrize("resource", ["cpu", "memory", "io"])
def test_pressure_of_this_host(resource):
    source = PressureSource(resource=resource, metric=resource, role="db")
    sample = read_twice(PressureReader(source, SETTING), 0.05)
    assert (sample.metric, sample.at, sample.role) == (resource, 2.0, "db")
    assert 0.0 <= sample.value <= 1.0


@pytest.mark.netns
@pytest.mark.skipif(UNIFIED not in mounted(), reason="needs a mounted cgroup v2, which alone has pressure by cgroup")
def test_processes_that_wait_for_each_other_in_a_cgroup():
    """Eight spin: on fewer processors some wait always. One that sleeps waits for nothing."""
    with Group("wait") as group, Group("rest") as rest:
        for _ in range(8):
            group.start("taskset", "-c", "0", *SPIN)
        rest.start("sleep", "60")
        quiet = PressureReader(PressureSource(resource="cpu", metric="cpu", cgroup=rest.name), SETTING)
        time.sleep(0.2)
        quiet.read(1.0)
        sample = read_twice(
            PressureReader(PressureSource(resource="cpu", metric="cpu_wait", cgroup=f"/{group.name}"), SETTING), 0.5
        )
        assert sample.metric == "cpu_wait"
        assert 0.7 < sample.value <= 1.0
        assert quiet.read(2.0)[0].value < 0.3


def test_time_of_some_and_of_all():
    assert stalled_seconds(TEXT, "some") == 74.364501
    assert stalled_seconds(TEXT, "full") == 12e-6


@pytest.mark.parametrize("text", ["", "some avg10=0.00", "full total=x", "some avg10=0.00 total=-1\n"])
def test_odd_pressure(text):
    with pytest.raises(CollectError, match=r"pressure: no total of 'some' .*psi=1"):
        stalled_seconds(text, "some")


def test_a_kernel_without_it(monkeypatch, tmp_path):
    monkeypatch.setattr(proc, "Path", lambda _, name: tmp_path / name)
    with pytest.raises(CollectError, match=r"/proc/pressure/io: No such file .*boot with psi=1"):
        PressureReader(PressureSource(resource="io", metric="io"), SETTING).read(1.0)


def test_a_host_with_v1_alone_says_that_v1_has_none(monkeypatch, tmp_path):
    mounts = tmp_path / "mountinfo"
    mounts.write_text("40 31 0:37 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n")
    monkeypatch.setattr("scentd.collect.cgroup.MOUNTS", mounts)
    reader = PressureReader(PressureSource(resource="cpu", metric="cpu", cgroup="vm"), SETTING)
    with pytest.raises(CollectError, match="cgroup vm: no hierarchy of v2, which alone has this, is mounted"):
        reader.read(1.0)


def test_a_cgroup_in_v2(unified):
    unified(memory__pressure=TEXT)
    reader = PressureReader(PressureSource(resource="memory", metric="memory", cgroup="a/b"), SETTING)
    assert reader.read(1.0) == []
    time.sleep(0.05)
    unified(memory__pressure=TEXT.replace("total=74364501", "total=74369501"))  # 5 ms more
    (sample,) = reader.read(2.0)
    assert 0.0 < sample.value <= 0.1
    reader = PressureReader(PressureSource(resource="io", metric="io", cgroup="a/b"), SETTING)
    with pytest.raises(CollectError, match=r"cgroup a/b: .*io.pressure: No such file .*psi=1"):
        reader.read(1.0)
