"""v1 is read from the kernel of this host if it has it, v2 then from files as the kernel writes them."""

import pytest
from groups import SPIN, Group

from scentd.collect import cgroup
from scentd.collect.cgroup import UNIFIED, Cgroup, Directory, check_cgroup, hierarchies, processors
from scentd.collect.source import CollectError

HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
40 31 0:37 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
42 31 0:40 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
"""


def test_each_controller_has_its_hierarchy():
    found = hierarchies(HYBRID)
    assert {name: str(h.top) for name, h in found.items() if name in ("cpu", "cpuacct", UNIFIED)} == {
        "cpu": "/sys/fs/cgroup/cpu,cpuacct",
        "cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
        UNIFIED: "/sys/fs/cgroup/unified",
    }
    assert [found[name].unified for name in ("cpu", UNIFIED)] == [False, True]


def test_a_mount_of_the_whole_hierarchy_goes_before_one_of_a_part():
    part = "50 1 0:26 /docker/5f /var/lib/part rw - cgroup2 cgroup2 rw\n"
    whole = "51 1 0:26 / /sys/fs/cgroup\\040here rw - cgroup2 cgroup2 rw\n"
    assert str(hierarchies(part + whole)[UNIFIED].top) == "/sys/fs/cgroup here"
    assert str(hierarchies(part)[UNIFIED].top) == "/var/lib/part"


@pytest.mark.parametrize("text", ["", "rubbish", "1 2 - cgroup2", "a - cgroup2 none rw", " - "])
def test_odd_mounts(text):
    assert hierarchies(text) == {}


def test_a_host_without_cgroups_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(cgroup, "MOUNTS", tmp_path / "mountinfo")
    with pytest.raises(CollectError, match="mountinfo: No such file"):
        Cgroup("a").directory("cpu")
    (tmp_path / "mountinfo").write_text("")
    group = Cgroup("a")
    with pytest.raises(CollectError, match="cgroup a: no hierarchy of cpu is mounted: mount -t cgroup2"):
        group.directory("cpu")
    with pytest.raises(CollectError, match="no hierarchy of v2, which alone has this, is mounted"):
        group.directory(UNIFIED)
    (tmp_path / "mountinfo").write_text(HYBRID)
    assert group.directory("cpu").path.name == "a", "it looks again"


@pytest.mark.parametrize("name", ["/machine.slice/vm1.scope", "machine.slice/vm1.scope", "machine-qemu\\x2d1.scope/a/"])
def test_names(name):
    assert check_cgroup(name, "p") == []


@pytest.mark.parametrize("name", ["/", "", "a/../b", "..", "a//b", "./a", "a\0b"])
def test_names_that_lead_elsewhere(name):
    (problem,) = check_cgroup(name, "network[0].source[0]")
    assert problem.startswith("network[0].source[0].cgroup: ")


@pytest.mark.parametrize(("text", "number"), [("0-3,8", 5), ("0", 1), ("", 0), ("2-2", 1), ("0-1,4-5,7", 5)])
def test_processors_of_a_list(text, number):
    assert processors(text) == number


def test_the_lowest_limit_of_all_above(unified):
    unified("a", memory__max=1000)
    unified("a/b", memory__max="max")
    group = Cgroup("/a/b")
    directory = group.directory("memory")
    assert group.lowest(directory, "memory.max") == 1000
    assert group.lowest(directory, "memory.high") is None
    unified("a/b", memory__max=500)
    assert group.lowest(directory, "memory.max") == 500
    unified("a/b", memory__max="much")
    with pytest.raises(CollectError, match=r"cgroup a/b: .*/memory.max: 'much'; .*report"):
        group.lowest(directory, "memory.max")


def test_a_file_that_is_not_there_and_one_that_is_odd(unified):
    group = Cgroup("a/b")
    directory = group.directory("cpu")
    with pytest.raises(CollectError, match=r"cgroup a/b: .*/cpu.stat: No such file .*CPUAccounting=yes"):
        group.value(directory, "cpu.stat", "usage_usec")
    unified(cpu__stat="nr_periods 0\nbroken\nusage_usec many")
    with pytest.raises(CollectError, match=r"cpu.stat: no user_usec"):
        group.value(directory, "cpu.stat", "user_usec")
    with pytest.raises(CollectError, match=r"cpu.stat: 'many'"):
        group.value(directory, "cpu.stat", "usage_usec")


@pytest.mark.netns
def test_a_cgroup_comes_goes_and_comes_back():
    with Group("come") as group:
        controller, path = next(iter(group.paths.items()))
        reading = Cgroup(group.name)
        directory = reading.directory(controller)
        assert directory == Directory(path, *group.versions[controller])
        first = reading.identity(directory)
        path.rmdir()
        for what in (lambda: reading.identity(directory), lambda: reading.read(directory, "cgroup.procs")):
            with pytest.raises(
                CollectError, match=f"cgroup {group.name}: .*No such file.*systemd-cgls, correct `cgroup`"
            ):
                what()
        path.mkdir()
        assert reading.identity(reading.directory(controller)) != first


@pytest.mark.netns
def test_a_cgroup_that_ends_while_its_limits_are_read():
    """An open directory of a cgroup that is gone answers ENODEV; nothing but a CollectError may come of it."""
    with Group("end") as group:
        reading, controller = Cgroup(group.name), next(iter(group.paths))
        directory = reading.directory(controller)
        group.start(*SPIN).kill()
        group.started[0].wait()
        group.remove()
        assert reading.words_upwards(directory, "cgroup.procs") == []
        assert reading.lowest(directory, "cgroup.procs") is None
