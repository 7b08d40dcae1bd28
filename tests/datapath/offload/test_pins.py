"""Pins in a real BPF file system."""

from __future__ import annotations

import errno
import os

import pytest
from compiled import bpffs

from scentd.datapath.offload import libbpf, pins
from scentd.datapath.offload.libbpf import BpfError, Object

pytestmark = pytest.mark.netns


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
