import time

import pytest
from readings import SETTING

from scentd.collect.cpu import CpuReader, CpuSource, busy_share, parse_stat
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
