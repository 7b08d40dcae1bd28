"""Maps and the ring buffer on the real kernel."""

from __future__ import annotations

import errno
import os
from struct import pack, unpack

import pytest
from work_object import PACKET, u32

from scentd.datapath.offload import bpfmap, bpfprog
from scentd.datapath.offload.bpfmap import Map, RingBuffer
from scentd.datapath.offload.libbpf import BpfError, Object

pytestmark = pytest.mark.netns


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
    values = counts.parts(counts.lookup(u32(0)))
    assert len(values) == bpfmap.possible_cpus()
    assert {len(value) for value in values} == {12}
    assert sum(unpack("=I", value[:4])[0] for value in values) == 3
    assert dict(counts.items()) == {u32(n): counts.lookup(u32(n)) for n in (0, 1)}


def test_elements_under_their_lock(loaded):
    table = Map(loaded.map_fd("locked"))
    key = u32(7)
    table.update_many([(key, u32(0, 41))])
    table.update(key, u32(0, 42), bpfmap.F_LOCK)
    bpfprog.prog_test_run(loaded.program_fd("work"), PACKET)
    assert table.lookup(key, bpfmap.F_LOCK) == u32(0, 43)
    table.update_many([(key, u32(0, 1))], bpfmap.F_LOCK)
    assert dict(table.items(bpfmap.F_LOCK)) == {key: u32(0, 1)}


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
