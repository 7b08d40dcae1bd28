"""What tests of the verifying program alone share; a file that needs more has a fixture of its own."""

from __future__ import annotations

import pytest
from bpf_programs import Kernel


@pytest.fixture(scope="module")
def kernel():
    made = Kernel()
    made.verify_by()
    yield made
    made.close()
