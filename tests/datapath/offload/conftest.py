"""The object of work_object.py, compiled, and loaded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from attaching import COUNTING, Lab
from compiled import bpffs, compiled
from topology import Topology
from work_object import SOURCE

from scentd.datapath.offload.libbpf import Object


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("libbpf"), "work", SOURCE)


@pytest.fixture
def loaded(path):
    with Object(path) as it:
        it.load()
        yield it


@pytest.fixture(scope="module")
def objects(tmp_path_factory) -> Iterator[Object]:
    with Object(compiled(tmp_path_factory.mktemp("attach"), "count", COUNTING)) as it:
        it.load()
        yield it


@pytest.fixture
def lab(objects, tmp_path) -> Iterator[Lab]:
    with bpffs(tmp_path / "bpf") as mount, Topology("attach") as net:
        (mount / "scentd").mkdir()
        yield Lab(net, str(mount / "scentd"), objects)
