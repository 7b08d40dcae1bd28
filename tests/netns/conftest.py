"""Tests on the real kernel: they need root, and say so where they cannot run."""

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root: network namespaces, netfilter queues")
    for item in items:
        if HERE in Path(item.fspath).parents:
            item.add_marker(skip)
