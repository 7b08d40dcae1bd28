"""The object of work_object.py, compiled, and loaded."""

from __future__ import annotations

import pytest
from compiled import compiled
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
