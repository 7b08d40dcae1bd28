"""libbpf on the real kernel: objects and what is refused, maps, the ring buffer, pins, test runs."""

from __future__ import annotations

import ctypes
import errno
import subprocess
import sys

import pytest
from compiled import compiled
from hosts import ROOT, environment
from work_object import u32

from scentd.datapath.offload import bpfprog, libbpf
from scentd.datapath.offload.bpfmap import Map
from scentd.datapath.offload.libbpf import BpfError, LoadError, Object
from scentd.errors import HostError

pytestmark = pytest.mark.netns


REFUSED = """
SEC("tc")
int work(struct __sk_buff *skb)
{
    return *(int *)(long)skb->data;
}
"""


# -- objects -------------------------------------------------------------------


def test_an_object_before_and_after_load(path):
    assert libbpf.available() is None
    with Object(path) as it:
        assert {"table", "counts", "locked", "no_batch", "events"} <= set(it.maps())
        assert it.programs() == ["work"]
        it.resize("table", 50)
        it.load()
        info = libbpf.map_info(it.map_fd("table"))
        assert (info.type, info.key_size, info.value_size, info.max_entries, info.name) == (1, 4, 8, 50, "table")
        program = bpfprog.program_info(it.program_fd("work"))
        assert program.name == "work"
        assert len(program.tag) == 16
        assert program.id > 0
        assert program.xlated_prog_len > 0
        assert program.jited_prog_len > 0
    it.close()  # twice is fine


def test_what_an_object_does_not_have_is_named(loaded):
    with pytest.raises(HostError, match="no map absent"):
        loaded.map_fd("absent")
    with pytest.raises(HostError, match="no program absent"):
        loaded.program_fd("absent")


def test_a_map_that_is_taken_over_is_shared(path, loaded):
    Map(loaded.map_fd("table")).update(u32(1), bytes(8))
    with Object(path) as second:
        second.resize("table", 7)
        second.reuse("table", loaded.map_fd("table"))
        second.load()
        shared = Map(second.map_fd("table"))
        assert shared.info == Map(loaded.map_fd("table")).info
        assert shared.lookup(u32(1)) == bytes(8)


def test_a_map_of_other_sizes_is_not_taken_over(path, loaded):
    with Object(path) as second, pytest.raises(HostError, match=r"map table: .*scentd cleanup"):
        second.reuse("table", loaded.map_fd("no_batch"))


def test_no_file_and_no_object(tmp_path):
    with pytest.raises(LoadError, match="No such file") as caught:
        Object(str(tmp_path / "absent.o"))
    assert caught.value.code == errno.ENOENT
    (tmp_path / "empty.o").touch()
    with pytest.raises(LoadError, match=r"empty\.o"):
        Object(str(tmp_path / "empty.o"))


def test_what_the_verifier_refuses_comes_with_its_log(tmp_path):
    with Object(compiled(tmp_path, "refused", REFUSED)) as it, pytest.raises(LoadError) as caught:
        it.load()
    assert caught.value.code == errno.EACCES
    assert "verifier" in str(caught.value)
    assert "outside of the packet" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "BEGIN PROG LOAD LOG" in caught.value.log
    assert "processed" in caught.value.log


WITHOUT_RIGHTS = """
import ctypes, sys
from scentd.datapath.offload.libbpf import LoadError, Object
libc = ctypes.CDLL(None)
it = Object(sys.argv[1])
assert libc.setresuid(65534, 65534, 65534) == 0
try:
    it.load()
except LoadError as error:
    print(error)
"""


def test_without_the_capabilities_the_way_out_is_said(path):
    done = python(WITHOUT_RIGHTS, path)
    assert "Operation not permitted; needs CAP_BPF" in done.stdout, done.stderr


CONFINED = """
import ctypes, sys
libc = ctypes.CDLL(None)
libc.prctl(65, 1, 0, 0, 0)  # PR_SET_MDWE, since Linux 6.3
from scentd.datapath.offload.bpfmap import RingBuffer
from scentd.datapath.offload.bpfprog import prog_test_run
from scentd.datapath.offload.libbpf import LoadError, Object
with Object(sys.argv[1]) as it:
    it.load()
    got = []
    ring = RingBuffer(it.map_fd("events"), got.append)
    prog_test_run(it.program_fd("work"), bytes(60))
    ring.consume()
    print(len(got))
with Object(sys.argv[2]) as it:
    try:
        it.load()
    except LoadError as error:
        print(len(error.log) > 100)
"""


def test_callbacks_work_where_no_memory_may_become_executable(path, tmp_path):
    done = python(CONFINED, path, compiled(tmp_path, "refused", REFUSED))
    assert done.stdout.split() == ["1", "True"], done.stderr


def python(source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", source, *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT, env=environment())


# -- maps ----------------------------------------------------------------------


# -- the ring buffer -----------------------------------------------------------


# -- programs ------------------------------------------------------------------


# -- pins ----------------------------------------------------------------------


def test_a_descriptor_that_is_none_of_ours():
    with pytest.raises(BpfError) as caught:
        libbpf.map_info(0)
    assert caught.value.code in (errno.EINVAL, errno.EBADF)
    assert ctypes.sizeof(bpfprog.RunOptions) == 80
