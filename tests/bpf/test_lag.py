"""The verifying program and stampers that lag: as core/packet/verify.py has it."""

from __future__ import annotations

import pytest
import wire_setup
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wire_strategies import TCP4, TCP6, at_epoch, verdict

from scentd.core.tables import EpochRow
from scentd.wire import layout

pytestmark = pytest.mark.netns

EPOCH = wire_setup.EPOCH
NOW = EPOCH + 0.5
ALICE_TO_BOB = 0


@pytest.fixture(params=(TCP4, TCP6), ids=["IPv4", "IPv6"])
def packet(request):
    return request.param


def begun(kernel, lag, packet=TCP4):
    """The verifier has accepted a packet of EPOCH."""
    kernel.fresh_verifier()
    kernel.set_highest(ALICE_TO_BOB, 0, lag=lag)
    assert kernel.verify(packet, NOW).counts == {"accepted": 1}


@pytest.mark.parametrize(
    ("lag", "behind", "wanted"), [(0, 1, "replayed-epoch:drop"), (20, 20, "accepted"), (20, 21, "replayed-epoch:drop")]
)
def test_up_to_the_lag(kernel, packet, lag, behind, wanted):
    begun(kernel, lag, packet)
    assert kernel.verify(at_epoch(EPOCH - behind, packet), NOW).counts == {wanted: 1}


def test_nothing_of_it_is_used_but_that_it_counts(kernel, packet):
    kernel.fresh_verifier()
    kernel.set_highest(ALICE_TO_BOB, EPOCH, lag=20)
    before = kernel.states()[ALICE_TO_BOB]
    ran = kernel.verify(at_epoch(EPOCH - 20, packet), NOW)
    assert (ran.counts, ran.events) == ({"accepted": 1}, [])
    assert kernel.states()[ALICE_TO_BOB] == before._replace(accepted=1)
    assert kernel.nodes() == {}
    assert kernel.verify(at_epoch(EPOCH, packet), NOW).counts == {"accepted": 1}
    assert kernel.nodes()[ALICE_TO_BOB], "the same addresses, under the newest epoch"


def test_a_stamper_that_lags_is_no_second_machine(kernel):
    begun(kernel, 20)
    for behind in (20, 15, 15, 10):
        assert kernel.verify(at_epoch(EPOCH - behind), NOW).counts == {"accepted": 1}
    for _ in range(3):
        assert kernel.verify(at_epoch(EPOCH - 21), NOW).counts == {"replayed-epoch:drop": 1}


def test_a_lag_is_written_beside_what_was_received(kernel):
    """As the daemon does when a profile says another one."""
    begun(kernel, 20)
    before = kernel.states()[ALICE_TO_BOB]
    kernel.set_lag(ALICE_TO_BOB, 5)
    assert kernel.states()[ALICE_TO_BOB] == before._replace(lag=5)
    assert kernel.verify(at_epoch(EPOCH - 6), NOW + 1).counts == {"replayed-epoch:drop": 1}
    assert kernel.verify(at_epoch(EPOCH - 5), NOW + 1).counts == {"accepted": 1}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(-70, 70), st.integers(-75, 75)), min_size=1, max_size=6),
    st.sampled_from((0, 1, 20, 55)),
)
def test_the_program_and_python_agree(kernel, steps, lag):
    packets = [(at_epoch(EPOCH + offset), float(EPOCH + clock)) for clock, offset in steps]
    epochs = [*EpochRow(lag=lag)] * 4
    wanted = []
    for packet, now in packets:
        outcome = verdict(wire_setup.verifier(now, epochs).verify(packet))
        wanted.append("accepted" if not outcome else f"{layout.VERDICTS[outcome]}:drop")
    found = [[name for name in ran.counts if name != "duplicate_issuer"] for ran in kernel.verify_all(packets, lag)]
    assert found == [[name] for name in wanted]
    state = kernel.states()[ALICE_TO_BOB]
    assert (state.highest, state.since, state.before, state.lag) == (epochs[0], epochs[1], epochs[2], lag)
