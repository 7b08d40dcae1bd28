"""Settings for all tests."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples on every run and machine; speed is never asserted.
settings.register_profile("scentd", derandomize=True, deadline=None, print_blob=False)
settings.load_profile("scentd")

TESTS = Path(__file__).parent
NETNS = TESTS / "netns"
LONGEST = ("scripts", "netns", "bpf", "systemd")


def pytest_collection_modifyitems(items):
    """Tests on the real kernel need root, and say so where they cannot run.

    Files that take long come first: side by side with others, none of them is left alone at the end.
    """
    items.sort(key=lambda item: order(Path(item.fspath).relative_to(TESTS).parts[0]))
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root: network namespaces, netfilter queues")
    for item in items:
        if NETNS in Path(item.fspath).parents or item.get_closest_marker("netns"):
            item.add_marker(skip)


def order(folder):
    return LONGEST.index(folder) if folder in LONGEST else len(LONGEST)
