"""Two processes in two cgroups send over one link; which of the two is the hog?"""

from __future__ import annotations

import asyncio
import time

import pytest
from compiled import bpffs
from groups import Group, sending
from readings import SETTING
from topology import Topology

from scentd.collect.application import ApplicationReader, ApplicationSource
from scentd.collect.cgroup import UNIFIED, mounted
from scentd.collect.source import CollectError
from scentd.datapath.offload.applications import Applications

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(UNIFIED not in mounted(), reason="needs a mounted cgroup v2, whose cgroups have programs"),
]

CAPACITY = 1e6


@pytest.fixture
def opened(tmp_path):
    """A function that makes readers and starts them. They are closed at the end."""
    readers = []
    with bpffs(tmp_path / "bpf") as directory:
        every = Applications(str(directory / "scentd"))

        def start(name, role=""):
            source = ApplicationSource(cgroup=name, capacity=CAPACITY, role=role)
            reader = ApplicationReader(source, SETTING._replace(count_bytes=every.open))
            asyncio.run(reader.start())
            readers.append(reader)
            return reader

        yield start
        for reader in readers:
            for _ in range(2):
                asyncio.run(reader.close())
        assert not (directory / "scentd" / "applications").exists()


def test_the_hog_is_told_from_its_neighbour(opened):
    with Topology("hog") as net, Group("hog") as hog, Group("quiet") as quiet:
        a, b = net.host("a"), net.host("b")
        net.link(a, b, ipv4="10.1.0.0/24")
        for group, size, pause in ((hog, 1000, 0.001), (quiet, 100, 0.1)):
            group.start(*sending(b.ipv4, size, pause), prefix=tuple(a.argv()))
        readers = {"db": opened(f"/{hog.name}", "db"), "web": opened(quiet.name, "web")}
        time.sleep(0.3)
        for reader in readers.values():
            assert reader.read(1.0) == []
        time.sleep(1.0)
        samples = [sample for reader in readers.values() for sample in reader.read(2.0)]
        levels = {(s.role, s.metric): s.value for s in samples}
        assert {s.at for s in samples} == {2.0}
        assert levels["db", "bandwidth_out"] == 1.0
        assert 0.001 < levels["web", "bandwidth_out"] < 0.1
        assert levels["db", "bandwidth_in"] < 0.2


def test_a_service_that_stops_and_starts(opened):
    with Group("svc") as group:
        reader = opened(group.name)
        assert reader.read(1.0) == []
        group.paths[UNIFIED].rmdir()
        with pytest.raises(CollectError, match=f"cgroup {group.name}: .*No such file.*correct `cgroup`"):
            reader.read(2.0)
        group.paths[UNIFIED].mkdir()
        time.sleep(0.02)
        assert reader.read(3.0) == []
        time.sleep(0.02)
        assert {s.metric: s.value for s in reader.read(4.0)} == {"bandwidth_in": 0.0, "bandwidth_out": 0.0}


def test_a_service_that_does_not_run_yet(opened):
    """It begins with its cgroup; the daemon's start does not fail."""
    with Group("late") as group:
        group.paths[UNIFIED].rmdir()
        reader = opened(group.name)
        with pytest.raises(CollectError, match="it is there while something runs in it"):
            reader.read(1.0)
        group.paths[UNIFIED].mkdir()
        assert reader.read(2.0) == []


def test_no_bpf_file_system(tmp_path):
    with Group("app") as group:
        every = Applications(str(tmp_path))
        source = ApplicationSource(cgroup=group.name, capacity=CAPACITY)
        reader = ApplicationReader(source, SETTING._replace(count_bytes=every.open))
        asyncio.run(reader.start())
        with pytest.raises(CollectError, match=f"application {group.name}: datapath.pin_dir .*BPF file system"):
            reader.read(1.0)
        asyncio.run(reader.close())


def test_a_collector_that_cannot_count():
    reader = ApplicationReader(ApplicationSource(cgroup="a", capacity=CAPACITY), SETTING)
    with pytest.raises(CollectError, match="nothing here counts bytes of cgroups"):
        asyncio.run(reader.start())
    assert reader.read(1.0) == []
    asyncio.run(reader.close())
