"""libbpf on the real kernel: objects and what is refused, maps, the ring buffer, pins, test runs."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from struct import pack, unpack

import pytest
from compiled import bpffs, compiled
from hosts import ROOT, environment

from scentd.datapath.offload import bpfmap, bpfprog, libbpf, pins
from scentd.datapath.offload.bpfmap import Map, RingBuffer
from scentd.datapath.offload.libbpf import BpfError, LoadError, Object
from scentd.errors import HostError

pytestmark = pytest.mark.netns

SOURCE = """
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 20000);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __type(key, __u32);
    __type(value, __u64);
} table SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 2);
    __type(key, __u32);
    __uint(value_size, 12);
} counts SEC(".maps");

struct locked {
    struct bpf_spin_lock lock;
    __u32 number;
};

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 4);
    __type(key, __u32);
    __type(value, struct locked);
} locked SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
    __uint(max_entries, 100);
    __type(key, __u32);
    __type(value, __u32);
} no_batch SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_RINGBUF);
    __uint(max_entries, 4096);
} events SEC(".maps");

SEC("tc")
int work(struct __sk_buff *skb)
{
    __u32 zero = 0, key = 7;
    __u32 *count = bpf_map_lookup_elem(&counts, &zero);
    if (count)
        count[0]++;
    struct locked *found = bpf_map_lookup_elem(&locked, &key);
    if (found) {
        bpf_spin_lock(&found->lock);
        found->number++;
        bpf_spin_unlock(&found->lock);
    }
    __u64 *event = bpf_ringbuf_reserve(&events, 8, 0);
    if (event) {
        *event = skb->len;
        bpf_ringbuf_submit(event, 0);
    }
    skb->mark = 0x1234;
    bpf_skb_change_tail(skb, skb->len + 100, 0);
    return 5;
}
"""

REFUSED = """
SEC("tc")
int work(struct __sk_buff *skb)
{
    return *(int *)(long)skb->data;
}
"""

PACKET = bytes(12) + b"\x08\x00" + bytes(46)


def u32(*numbers: int) -> bytes:
    return pack(f"={len(numbers)}I", *numbers)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("libbpf"), "work", SOURCE)


@pytest.fixture
def loaded(path):
    with Object(path) as it:
        it.load()
        yield it


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


def test_elements_one_by_one(loaded):
    table = Map(loaded.map_fd("table"))
    assert table.lookup(u32(1)) is None
    table.update(u32(1), b"eight by")
    assert table.lookup(u32(1)) == b"eight by"
    with pytest.raises(BpfError) as caught:
        table.update(u32(1), bytes(8), flags=1)  # BPF_NOEXIST
    assert caught.value.code == errno.EEXIST
    assert table.delete(u32(1))
    assert not table.delete(u32(1))


@pytest.mark.parametrize("call", [lambda t: t.lookup(b"abc"), lambda t: t.update(u32(1), b""), lambda t: t.delete(b"")])
def test_other_sizes_never_reach_the_kernel(loaded, call):
    with pytest.raises(ValueError, match="bytes where the map has"):
        call(Map(loaded.map_fd("table")))


@pytest.mark.parametrize("count", [0, 1, 4096, 4097, 20000])
def test_batches(loaded, count):
    table = Map(loaded.map_fd("table"))
    want = {u32(n): pack("=Q", n * n) for n in range(count)}
    table.update_many(want.items())
    assert dict(table.items()) == want
    assert set(table.keys()) == set(want)
    gone = [u32(n) for n in range(0, 2 * count, 2)]  # the half of them is not there
    assert table.delete_many(gone) == (count + 1) // 2
    assert set(table.keys()) == set(want) - set(gone)


def test_a_full_map_says_how_many_it_holds(path):
    with Object(path) as it:
        it.resize("table", 10)
        it.load()
        with pytest.raises(BpfError, match=r"BPF map table: update \(10 entries at most\)") as caught:
            Map(it.map_fd("table")).update_many((u32(n), bytes(8)) for n in range(11))
        assert caught.value.code == errno.E2BIG


def test_buckets_that_hold_more_than_a_batch(loaded, monkeypatch):
    monkeypatch.setattr(bpfmap, "CHUNK", 1)
    table = Map(loaded.map_fd("table"))
    want = {u32(n) for n in range(2000)}  # some share one of the 32768 buckets
    table.update_many((key, bytes(8)) for key in want)
    assert set(table.keys()) == want


def test_a_map_without_batches(loaded):
    table = Map(loaded.map_fd("no_batch"))
    want = {u32(n): u32(1) for n in range(100)}  # the interface lo
    table.update_many(want.items())
    assert dict(table.items()) == want
    assert table.delete_many([*want, u32(1000)]) == 100
    assert list(table.items()) == []


def test_reading_survives_deletions_meanwhile(loaded):
    for name in ("table", "no_batch"):
        table = Map(loaded.map_fd(name))
        value = u32(1) + bytes(table.value_size - 4)
        table.update_many((u32(n), value) for n in range(100))
        seen = set()
        for key, _ in table.items():
            assert key not in seen
            seen.add(key)
            if unpack("=I", key)[0] % 2:
                table.delete(key)
        assert len(seen) == 100
        assert len(list(table.items())) == 50


def test_values_of_each_cpu(loaded):
    counts = Map(loaded.map_fd("counts"))
    for _ in range(3):
        bpfprog.prog_test_run(loaded.program_fd("work"), PACKET)
    values = counts.lookup_percpu(u32(0))
    assert len(values) == bpfmap.possible_cpus()
    assert {len(value) for value in values} == {12}
    assert sum(unpack("=I", value[:4])[0] for value in values) == 3
    assert dict(counts.items()) == {u32(n): counts.lookup(u32(n)) for n in (0, 1)}
    assert counts.lookup_percpu(u32(2)) is None


def test_elements_under_their_lock(loaded):
    table = Map(loaded.map_fd("locked"))
    key = u32(7)
    table.update_many([(key, u32(0, 41))])
    table.update(key, u32(0, 42), bpfmap.F_LOCK)
    bpfprog.prog_test_run(loaded.program_fd("work"), PACKET)
    assert table.lookup(key, bpfmap.F_LOCK) == u32(0, 43)
    table.update_many([(key, u32(0, 1))], bpfmap.F_LOCK)
    assert dict(table.items(bpfmap.F_LOCK)) == {key: u32(0, 1)}


# -- the ring buffer -----------------------------------------------------------


def test_records_come_and_a_failing_callback_is_counted(loaded, caplog):
    got = []

    def take(record: bytes) -> None:
        got.append(unpack("=Q", record)[0])
        if len(got) == 2:
            raise RuntimeError("not this one")

    ring = RingBuffer(loaded.map_fd("events"), take)
    assert ring.consume() == 0
    for length in (60, 61, 62):
        bpfprog.prog_test_run(loaded.program_fd("work"), PACKET + bytes(length - 60))
    assert os.get_blocking(ring.fileno()) is True
    assert ring.consume() == 3
    assert got == [60, 61, 62]
    assert ring.failures == 1
    assert "not this one" in caplog.text
    ring.close()
    ring.close()


def test_no_ring_buffer(loaded):
    with pytest.raises(BpfError):
        RingBuffer(loaded.map_fd("table"), print)


# -- programs ------------------------------------------------------------------


def test_a_run_tells_the_return_value_the_packet_the_context_and_its_time(loaded):
    context = bytearray(192)  # struct __sk_buff
    context[8:12] = u32(7)  # mark
    retval, data, out, duration = bpfprog.prog_test_run(loaded.program_fd("work"), PACKET, bytes(context))
    assert retval == 5
    assert data == PACKET + bytes(100)
    assert out[8:12] == u32(0x1234)
    assert duration >= 0
    retval, data, out, _ = bpfprog.prog_test_run(loaded.program_fd("work"), PACKET, repeat=3)
    assert (retval, len(data), out) == (5, 60 + 300, b"")


# -- pins ----------------------------------------------------------------------


def test_pins(loaded, path, tmp_path):
    with bpffs(tmp_path / "bpf") as directory:
        own = directory / "own"
        own.mkdir()
        name = str(own / "table")
        assert pins.get(name) is None
        pins.pin(loaded.map_fd("table"), name)
        with pytest.raises(BpfError) as caught:
            pins.pin(loaded.map_fd("table"), name)
        assert caught.value.code == errno.EEXIST
        assert map_id(name) == libbpf.map_info(loaded.map_fd("table")).id
        with Object(path) as second:
            second.load()
            for _ in range(2):
                pins.replace_pin(second.map_fd("table"), name)
                assert os.listdir(own) == ["table"]
            want = libbpf.map_info(second.map_fd("table")).id
        assert map_id(name) == want  # it is there though the object is closed
        pins.unpin(name)
        pins.unpin(name)
        assert pins.get(name) is None


def map_id(path: str) -> int:
    fd = pins.get(path)
    try:
        return libbpf.map_info(fd).id
    finally:
        os.close(fd)


def test_where_pins_can_be(loaded, tmp_path):
    with bpffs(tmp_path / "bpf") as directory:
        (directory / "below").mkdir()
        assert pins.is_bpffs(str(directory))
        assert pins.is_bpffs(str(directory / "below"))
    assert not pins.is_bpffs(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        pins.is_bpffs(str(tmp_path / "absent"))
    for path in (tmp_path / "x", tmp_path / "absent" / "x"):
        with pytest.raises(BpfError, match=r"datapath\.pin_dir"):
            pins.pin(loaded.map_fd("table"), str(path))


def test_a_descriptor_that_is_none_of_ours():
    with pytest.raises(BpfError) as caught:
        libbpf.map_info(0)
    assert caught.value.code in (errno.EINVAL, errno.EBADF)
    assert ctypes.sizeof(bpfprog.RunOptions) == 80
