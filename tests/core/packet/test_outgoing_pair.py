"""In which order the fragments of an epoch leave. test_stamp.py has the packets that carry them."""

from __future__ import annotations

import pytest
import wire_setup

from scentd.core.packet.outgoing_pair import OutgoingPair


def taken(count, epoch=wire_setup.EPOCH):
    """The fragments of so many runs."""
    pair = OutgoingPair(wire_setup.STAMP_TABLE.pairs[0], wire_setup.outgoing(epoch)[0])
    return [pair.take()[0] for _ in range(count)]


def test_any_nineteen_runs_carry_all_fragments():
    indexes = taken(1000)
    assert all(len(set(indexes[at : at + 19])) == 10 for at in range(len(indexes) - 18))


@pytest.mark.parametrize("rhythm", [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 20, 50, 100])
def test_a_flow_of_regular_rhythm_has_all_fragments(rhythm):
    """Of every k-th run: perhaps all that one of several verifiers sees. In equal rounds a tenth is the same."""
    for epoch in range(wire_setup.EPOCH, wire_setup.EPOCH + 20):
        indexes = taken(120 * rhythm, epoch)
        assert all(len(set(indexes[at::rhythm])) == 10 for at in range(rhythm))
