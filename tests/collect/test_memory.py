import pytest
from readings import SETTING

from scentd.collect.memory import MemoryReader, MemorySource, used_share
from scentd.collect.source import CollectError
from scentd.model import Sample


def test_memory_of_this_host():
    (sample,) = MemoryReader(MemorySource(), SETTING).read(5.0)
    assert sample == Sample("memory", sample.value, 5.0)
    assert 0.0 < sample.value < 1.0


def test_used_share():
    assert used_share("MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 250 kB\n") == 0.75
    assert used_share("MemTotal: 1000 kB\nMemAvailable: 2000 kB\n") == 0.0


@pytest.mark.parametrize(
    "text", ["", "MemTotal: 5 kB", "MemTotal: 0 kB\nMemAvailable: 0 kB", "MemTotal:\nMemAvailable:"]
)
def test_odd_meminfo(text):
    with pytest.raises(CollectError, match="/proc/meminfo"):
        used_share(text)
