"""The verifying program and epochs of clocks that were wrong, or of two machines: as core/packet/verify.py has it."""

from __future__ import annotations

from dataclasses import replace

import carriers
import pytest
import wire_setup
from wire_strategies import TCP4, TCP6, at_epoch

from scentd.wire import ip

pytestmark = pytest.mark.netns

NOW = wire_setup.EPOCH + 0.5
ALICE_TO_BOB = 0


@pytest.fixture(autouse=True)
def fresh(kernel):
    kernel.fresh_verifier()


def test_after_a_leap_epochs_of_that_stretch_may_not_be_ahead_again(kernel):
    highest = wire_setup.EPOCH + 7
    kernel.set_highest(ALICE_TO_BOB, 0, highest)
    for ahead in (3, 7):
        assert kernel.verify(at_epoch(wire_setup.EPOCH + ahead), NOW).counts == {"future:drop": 1}
    assert kernel.verify(at_epoch(wire_setup.EPOCH + 2), NOW).counts == {"accepted": 1}
    assert kernel.verify(at_epoch(highest + 1), NOW).counts == {"accepted": 1}, "beyond the stretch it is as always"


def test_a_highest_epoch_that_fell_back_lets_later_ones_count_in_full(kernel):
    assert kernel.verify(at_epoch(wire_setup.EPOCH + 8), NOW).counts == {"accepted": 1}
    assert kernel.verify(TCP4, NOW).counts == {"replayed-epoch:drop": 1}
    kernel.set_highest(ALICE_TO_BOB, wire_setup.EPOCH - 100, wire_setup.EPOCH + 8)
    ran = kernel.verify(TCP4, NOW)
    assert ran.counts == {"accepted": 1}
    assert [event.epoch for event in ran.events] == [wire_setup.EPOCH]
    assert kernel.states()[ALICE_TO_BOB].leapt == wire_setup.EPOCH + 8


def test_a_second_machine_with_the_same_key_is_noticed(kernel):
    other = wire_setup.stamper()
    other.update(wire_setup.outgoing(statement=replace(wire_setup.STATEMENT, overall=0.1)))
    for packet in (TCP4, TCP6):
        assert kernel.verify(packet, NOW).counts == {"accepted": 1}
    again = other.stamp(carriers.remove(TCP4, ip.parse(TCP4)))
    assert kernel.verify(again, NOW).counts == {"accepted": 1, "duplicate_issuer": 1}
    refused = {"replayed-epoch:drop": 1}
    for behind, noticed in ((40, False), (40, False), (35, True), (36, False), (30, True)):
        counts = kernel.verify(at_epoch(wire_setup.EPOCH - behind), NOW).counts
        assert counts == (refused | {"duplicate_issuer": 1} if noticed else refused), behind
