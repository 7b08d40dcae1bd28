"""Settings for all tests."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples on every run and machine; speed is never asserted.
settings.register_profile("scentd", derandomize=True, deadline=None, print_blob=False)
settings.load_profile("scentd")

NETNS = Path(__file__).parent / "netns"


def pytest_collection_modifyitems(items):
    """Tests on the real kernel need root, and say so where they cannot run."""
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root: network namespaces, netfilter queues")
    for item in items:
        if NETNS in Path(item.fspath).parents or item.get_closest_marker("netns"):
            item.add_marker(skip)
