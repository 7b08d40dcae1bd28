"""A host whose cgroups are v2 alone, in files: the kernel that the tests run on may have v1."""

import pytest

from scentd.collect import cgroup


@pytest.fixture
def unified(tmp_path, monkeypatch):
    """A host with v2 alone, in files: a function that writes those of the cgroup a/b, or of one above it."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"30 23 0:26 / {tmp_path}/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n")
    monkeypatch.setattr(cgroup, "MOUNTS", mounts)

    def write(name="a/b", **files):
        directory = tmp_path / "cgroup" / name
        directory.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (directory / file.replace("__", ".")).write_text(f"{text}\n")

    write()
    return write
