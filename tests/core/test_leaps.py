"""What a receiver goes back to when clocks that were wrong at both ends are right again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scentd.core.leaps import KEPT, SLACK, Leaps, from_document, to_document


def known(highest: int = 1000, at: float = 50.0) -> Leaps:
    """One pair whose highest epoch was seen at `at`."""
    leaps = Leaps()
    leaps.begin({0: 0}, {}, 0.0)
    assert not leaps.note(0, highest, at), "the first epoch of all leaps from none"
    return leaps


def test_both_clocks_were_ahead_and_are_right_again():
    leaps = known()
    assert leaps.note(0, 1605, 55.0)
    assert leaps.before() == {0: 1000}
    assert not leaps.note(0, 1610, 60.0), "what is kept is from before the first leap"
    assert leaps.fall_back(1630.0) == {}, "the clock is still ahead"
    assert leaps.fall_back(1030.0) == {0: (1000, 1610)}
    assert leaps.fall_back(1030.0) == leaps.before() == {}, "once"
    assert not leaps.note(0, 1015, 66.0)


def test_an_epoch_that_rose_without_a_leap_never_falls():
    """Whoever moves the receiver's clock back a day makes it take nothing of yesterday's."""
    leaps = known()
    for i in range(1, 2000):
        assert not leaps.note(0, 1000 + 5 * i, 50.0 + 5 * i)
    assert leaps.fall_back(1000.0 - 86400) == {}


def test_a_quiet_hour_is_no_leap_and_one_after_a_restart_may_be():
    leaps = known()
    assert not leaps.note(0, 4600, 3650.0)
    again = Leaps()
    again.begin({0: 4600}, leaps.before(), 0.0)
    assert not again.note(0, 4600 + int(SLACK), 1.0)
    assert again.note(0, 9000, 2.0), "nobody knows how long it was"


def test_it_is_kept_for_an_hour_and_over_a_restart():
    leaps = known()
    leaps.note(0, 1605, 55.0)
    slots = {0: b"12345678"}
    document = to_document(leaps.before(), slots)
    again = Leaps()
    again.begin({0: 1605}, from_document(document, slots.items()), 5.0)
    assert not again.expire(5.0 + KEPT - 1)
    assert again.fall_back(1010.0) == {0: (1000, 1605)}
    assert leaps.expire(55.0 + KEPT)
    assert leaps.fall_back(1010.0) == {}


def test_a_reload_keeps_what_is_known_and_forgets_who_has_left():
    leaps = known()
    leaps.note(0, 1605, 55.0)
    leaps.begin({0: 1605, 1: 7}, {}, 60.0)
    assert leaps.fall_back(1010.0) == {0: (1000, 1605)}
    leaps.note(0, 1705, 62.0)
    leaps.begin({1: 7}, {}, 63.0)
    assert leaps.before() == {}


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_any_document_is_read(document):
    assert from_document(document, [(0, b"12345678")]) == {}


def test_numbers_of_no_epoch_are_left_out():
    names = [(n, bytes((n,)) * 8) for n in range(4)]
    document = {names[0][1].hex(): -1, names[1][1].hex(): 1 << 32, names[2][1].hex(): "7", names[3][1].hex(): 7}
    assert from_document(document, names) == {3: 7}
