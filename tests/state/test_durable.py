"""A file is the old one or the new one, and nothing lies beside it."""

import os
import subprocess

import pytest

from scentd.state import durable


def test_a_new_file_is_ours_alone(tmp_path):
    durable.write(tmp_path / "one", b"text")
    assert (tmp_path / "one").read_bytes() == b"text"
    assert (tmp_path / "one").stat().st_mode & 0o7777 == 0o600
    assert os.listdir(tmp_path) == ["one"]


def test_like_another(tmp_path):
    path = tmp_path / "one"
    path.write_bytes(b"old")
    path.chmod(0o644)
    durable.write(path, b"new", path.stat())
    assert (path.read_bytes(), path.stat().st_mode & 0o7777) == (b"new", 0o644)


@pytest.mark.netns
def test_a_full_disk_changes_nothing(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", tmp_path], check=True)
    try:
        durable.write(tmp_path / "one", b"old")
        with pytest.raises(OSError, match="No space left"):
            durable.write(tmp_path / "one", bytes(1 << 16))
        assert (tmp_path / "one").read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["one"]
    finally:
        subprocess.run(["umount", tmp_path], check=True)
