"""Read replicas of a real primary, for the tests of postgres."""

from contextlib import closing

import pytest
from read_pool import ReadPool


@pytest.fixture(scope="module")
def pool():
    with closing(ReadPool()) as made:
        yield made


@pytest.fixture
def reads(pool):
    """A back end of peer `left`; it has none in the end, and nothing is left."""
    backend = pool.backend()
    yield backend
    backend.change("left", 0)
    assert backend.observe() == {"left": 0.0}
    assert pool.clean()
