"""Stampers that lag: what the verifier takes below the highest epoch, and that it uses nothing of it."""

import foreign
import pytest
import wire_setup
from hypothesis import given
from hypothesis import strategies as st
from wire_strategies import TCP4, TCP6, at_epoch, quick, verdict

from scentd.core.tables import LAG, EpochRow
from scentd.wire import layout

EPOCH, NOW = wire_setup.EPOCH, wire_setup.NOW
PACKETS = (TCP4, TCP6)


@pytest.fixture(params=PACKETS, ids=["IPv4", "IPv6"])
def packet(request):
    return request.param


def test_it_is_accepted_up_to_the_lag_and_for_as_long_as_it_is_fresh(packet):
    one = wire_setup.verifier(lag=20)
    assert isinstance(one.verify(at_epoch(EPOCH, packet)), bytes)
    for behind, wanted in ((1, "accepted"), (20, "accepted"), (21, "replayed-epoch")):
        assert layout.VERDICTS[verdict(one.verify(at_epoch(EPOCH - behind, packet)))] == wanted, behind
    one.tick(EPOCH + 40)
    assert verdict(one.verify(at_epoch(EPOCH - 20, packet))) == layout.VERDICT_ACCEPTED
    one.tick(EPOCH + 41)
    assert verdict(one.verify(at_epoch(EPOCH - 20, packet))) == layout.VERDICT_STALE


def test_nothing_of_it_is_used(packet):
    """No fragment, no glance, no node; it counts as its peer's, and a beacon is consumed."""
    one = wire_setup.verifier(lag=20)
    assert isinstance(one.verify(TCP4), bytes)
    glance = one.glance(TCP4)
    before = one.events.copy(), one.drain_nodes(), list(one._epochs)
    one.drain_accepted()
    assert isinstance(one.verify(at_epoch(EPOCH - 20, packet)), bytes)
    assert (one.events, list(one._epochs)) == (before[0], before[2])
    assert one.drain_nodes() == {}
    assert one.glance(TCP4) == glance
    assert one.drain_accepted() == {0: 1}


def test_nor_in_a_worker_that_has_seen_older_ones_alone():
    """The highest is shared, fragments are a worker's own: what another worker has left behind is no news here."""
    epochs = [*EpochRow(lag=20)] * 4
    one, other = wire_setup.verifier(epochs=epochs), wire_setup.verifier(epochs=epochs)
    assert isinstance(other.verify(at_epoch(EPOCH - 15)), bytes)
    for seconds, packet in ((1, at_epoch(EPOCH - 12)), (2, TCP4)):
        one.tick(wire_setup.NOW + seconds)
        assert isinstance(one.verify(packet), bytes)
    other.events.clear()
    assert isinstance(other.verify(at_epoch(EPOCH - 14)), bytes)
    assert other.events == []


def test_a_lower_lag_counts_at_once_and_a_higher_one_too():
    one = wire_setup.verifier()
    assert isinstance(one.verify(TCP4), bytes)
    for second, lag, wanted in ((1, 0, "replayed-epoch"), (2, 20, "accepted"), (3, 19, "replayed-epoch")):
        one._epochs[LAG] = lag
        one.tick(NOW + second)
        assert layout.VERDICTS[verdict(one.verify(at_epoch(EPOCH - 20)))] == wanted


def test_a_stamper_that_lags_is_no_second_machine():
    """Its epochs rise, and are not refused; of one that is cut off for longer they do not rise."""
    one = wire_setup.verifier(lag=20)
    assert isinstance(one.verify(TCP4), bytes)
    for behind in (20, 15, 15, 10):
        assert isinstance(one.verify(at_epoch(EPOCH - behind)), bytes)
    for _ in range(3):
        assert verdict(one.verify(at_epoch(EPOCH - 21))) == layout.VERDICT_REPLAYED_EPOCH
    assert one.drain_duplicates() == {}


def test_after_a_leap_the_lag_is_from_where_the_highest_fell_back_to():
    """An epoch of the stretch in which both clocks were wrong may not be ahead of the clock, lag or not."""
    fallen = EPOCH - 30
    one = wire_setup.verifier(NOW, [*EpochRow(fallen, leapt=EPOCH + 500, lag=20)] * 4)
    assert isinstance(one.verify(at_epoch(fallen - 20)), bytes)
    assert verdict(one.verify(at_epoch(fallen - 21))) == layout.VERDICT_REPLAYED_EPOCH
    assert verdict(one.verify(at_epoch(EPOCH + 5))) == layout.VERDICT_FUTURE
    assert isinstance(one.verify(TCP4), bytes)
    assert isinstance(one.verify(at_epoch(EPOCH - 20)), bytes), "the lag is from the new highest again"
    one.tick(NOW + 3)  # grace is over
    assert verdict(one.verify(at_epoch(fallen))) == layout.VERDICT_REPLAYED_EPOCH


moments = st.lists(st.tuples(st.integers(-70, 70), st.integers(-75, 75)), min_size=1, max_size=14)


@quick
@given(moments, st.integers(0, layout.LAG_MAX))
def test_nothing_older_than_the_lag_is_ever_accepted(steps, lag):
    """In whichever worker, with whatever clock: only grace, for the epoch before, is beside it."""
    epochs = [*EpochRow(lag=lag)] * 4
    for clock, offset in steps:
        one = wire_setup.verifier(EPOCH + clock, epochs)
        highest, _, before, *_ = epochs[: len(EpochRow())]
        if isinstance(one.verify(at_epoch(EPOCH + offset)), bytes):
            assert clock - 60 <= offset <= clock + 10
            assert EPOCH + offset >= min(highest - lag, before or highest)


@quick
@given(moments, st.sampled_from((0, 0, 1, 20, 55)))
def test_it_is_what_the_text_says(steps, lag):
    """By the second implementation; with a lag of 0 it is the rule that there was before."""
    epochs, marks = [*EpochRow(lag=lag)] * 4, (0, 0, 0, lag)
    for clock, offset in steps:
        if not clock - 60 <= offset <= clock + 10:
            continue
        one = wire_setup.verifier(EPOCH + clock, epochs)
        wanted, used, marks = foreign.fresh(EPOCH + offset, EPOCH + clock, marks)
        assert layout.VERDICTS[verdict(one.verify(at_epoch(EPOCH + offset)))] == wanted
        assert tuple(epochs[i] for i in (0, 1, 2, LAG)) == marks
        if used:
            assert [event.epoch for event in one.events] == [EPOCH + offset]
