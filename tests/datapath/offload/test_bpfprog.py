"""Test runs of a program on the real kernel."""

from __future__ import annotations

import pytest
from work_object import PACKET, u32

from scentd.datapath.offload import bpfprog

pytestmark = pytest.mark.netns


def test_a_run_tells_the_return_value_the_packet_the_context_and_its_time(loaded):
    context = bytearray(192)  # struct __sk_buff
    context[8:12] = u32(7)  # mark
    retval, data, out, duration = bpfprog.prog_test_run(loaded.program_fd("work"), PACKET, bytes(context))
    assert retval == 5
    assert data == PACKET + bytes(100)
    assert out[8:12] == u32(0x1234)
    assert duration >= 0
    retval, data, out, _ = bpfprog.prog_test_run(loaded.program_fd("work"), PACKET, repeat=3)
    assert (retval, len(data), out) == (5, 60 + 300, b"")
