import time

import pytest

from scentd.collect import CollectError, cpu
from scentd.collect.cpu import CpuSource
from scentd.collect.memory import MemorySource
from scentd.model import Sample

STAT = "cpu  100 20 30 800 50 5 6 7 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"


def spin(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def test_busy_share_of_this_host():
    cpu = cpu.Cpu(CpuSource(role="db"))
    assert cpu.read(5.0) == []
    spin(0.15)
    (sample,) = cpu.read(6.0)
    assert (sample.metric, sample.at, sample.role) == ("cpu", 6.0, "db")
    assert 0.0 < sample.value <= 1.0


def test_memory_of_this_host():
    (sample,) = cpu.Memory(MemorySource(role="db")).read(5.0)
    assert sample == Sample("memory", sample.value, 5.0, role="db")
    assert 0.0 < sample.value < 1.0


def test_stolen_time_is_busy_and_iowait_is_not():
    assert cpu.parse_stat(STAT) == (168, 1018)


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
    assert cpu.busy_share(before, after) == share


@pytest.mark.parametrize("text", ["", "\n", "intr 1 2", "cpu 1 2 3", "cpu a b c d e f g h"])
def test_odd_stat(text):
    with pytest.raises(CollectError, match="/proc/stat"):
        cpu.parse_stat(text)


def test_used_share():
    assert cpu.used_share("MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 250 kB\n") == 0.75
    assert cpu.used_share("MemTotal: 1000 kB\nMemAvailable: 2000 kB\n") == 0.0


@pytest.mark.parametrize(
    "text", ["", "MemTotal: 5 kB", "MemTotal: 0 kB\nMemAvailable: 0 kB", "MemTotal:\nMemAvailable:"]
)
def test_odd_meminfo(text):
    with pytest.raises(CollectError, match="/proc/meminfo"):
        cpu.used_share(text)


def test_a_file_that_is_not_there():
    with pytest.raises(CollectError, match="/proc/no-such: No such file"):
        cpu.read_proc("no-such")
