"""What a bus delivers twice or late counts once."""

from hypothesis import given
from hypothesis import strategies as st

from scentd.core.fleet.order import FORGET, LATE, Order, Serial, is_late


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5))))
def test_only_what_is_newer_than_all_before(stamps):
    order, highest = Order(), None
    for run, number in stamps:
        new = highest is None or (run, number) > highest
        assert order.take("c", Serial(run, number), 10.0) is new
        highest = (run, number) if new else highest


def test_senders_have_nothing_to_do_with_each_other():
    order = Order()
    assert order.take("c", Serial(5, 5), 0.0)
    assert order.take("d", Serial(1, 1), 0.0)


def test_a_sender_whose_clock_was_set_back_is_heard_again():
    order = Order()
    assert order.take("c", Serial(100, 7), 0.0)
    assert not order.take("c", Serial(50, 1), FORGET - 1)
    assert order.take("c", Serial(50, 1), FORGET)
    assert not order.take("c", Serial(50, 1), FORGET + 1)


def test_a_recording_is_late_before_its_sender_is_forgotten():
    assert FORGET > 2 * LATE
    assert not is_late(1000.0, 1000.0 + LATE)
    assert is_late(1000.0, 1000.1 + LATE)
    assert is_late(1000.1 + LATE, 1000.0)
    assert is_late(float("nan"), 1000.0)
