"""What a receiver goes back to when clocks that were wrong at both ends are right again."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from scentd.core.leaps import KEPT, MAX_KEPT, SLACK, Kept, LeapFile, Leaps, from_file, to_file

SLOTS = {0: b"12345678"}


def known(highest: int = 1000, at: float = 50.0) -> Leaps:
    """One pair whose highest epoch was seen at `at`."""
    leaps = Leaps()
    leaps.begin({0: 0}, {})
    assert not leaps.note(0, highest, at), "the first epoch of all leaps from none"
    return leaps


def kept(leaps: Leaps) -> list[int]:
    return [one.epoch for one in leaps.kept().get(0, ())]


def again(leaps: Leaps, highest: int, now: float, boot: str = "this") -> Leaps:
    """After a restart of the daemon."""
    made = Leaps()
    written = msgspec.json.decode(msgspec.json.encode(to_file(leaps.kept(), SLOTS, "this")), type=LeapFile)
    made.begin({0: highest}, from_file(written, SLOTS.items(), boot, now))
    return made


def test_both_clocks_were_ahead_and_are_right_again():
    leaps = known()
    assert leaps.note(0, 1605, 55.0)
    assert not leaps.note(0, 1610, 60.0)
    assert kept(leaps) == [1000], "what is kept is from before the leap"
    assert leaps.fall_back(1630.0) == {}, "the clock is still ahead"
    assert leaps.fall_back(1030.0) == {0: (1000, 1610)}
    assert leaps.fall_back(1030.0) == {}, "once"
    assert not leaps.note(0, 1015, 66.0)
    assert leaps.note(0, 1705, 67.0), "the next leap"


def test_an_epoch_that_rose_without_a_leap_never_falls():
    """Whoever moves the receiver's clock back a day makes it take nothing of yesterday's."""
    leaps = known()
    for i in range(1, 2000):
        assert not leaps.note(0, 1000 + 5 * i, 50.0 + 5 * i)
    assert leaps.fall_back(1000.0 - 86400) == {}


def test_clocks_that_get_ahead_in_small_steps_leap_too():
    leaps = known()
    for i in range(1, 700):
        leaps.note(0, 1000 + 9 * i, 50.0 + 5 * i)
    assert len(kept(leaps)) == MAX_KEPT
    right = 1000 + 5 * 699
    back, highest = leaps.fall_back(right + 10.0)[0]
    assert highest == 1000 + 9 * 699
    assert back == kept(leaps)[0] < 1000 + 2 * SLACK, "the oldest is from before they began"


def test_a_quiet_hour_is_no_leap_and_one_after_a_restart_may_be():
    leaps = known()
    assert not leaps.note(0, 4600, 3650.0)
    later = again(leaps, 4600, 0.0)
    assert not later.note(0, 4600 + int(SLACK), 1.0)
    assert again(leaps, 4600, 0.0).note(0, 9000, 2.0), "nobody knows how long it was"


def test_a_leap_after_a_restart_that_looked_like_one():
    """Each leap has its own hour and its own way back."""
    leaps = again(known(), 1000, 0.0)
    assert leaps.note(0, 1010, 1.0)
    for at in range(2, 3590):
        leaps.note(0, 1009 + at, float(at))
    assert leaps.note(0, 4599 + 86400, 3590.0)
    assert kept(leaps) == [1000, 4598]
    assert leaps.expire(1.0 + KEPT)
    assert leaps.fall_back(4700.0) == {0: (4598, 4599 + 86400)}


def test_restarts_do_not_renew_the_hour():
    leaps, highest = again(known(), 1000, 0.0), 1000
    for at in range(0, 30 * 3000, 3000):
        leaps = again(leaps, highest, float(at))
        highest = 2000 + at
        leaps.note(0, highest, at + 1.0)
        leaps.expire(at + 2999.0)
    assert kept(leaps) == [highest - 3000], "of the last restart alone"


def test_it_is_kept_for_an_hour_and_over_a_restart():
    leaps = known()
    leaps.note(0, 1605, 55.0)
    later = again(leaps, 1605, 65.0)
    assert not later.expire(55.0 + KEPT - 1)
    assert later.fall_back(1010.0) == {0: (1000, 1605)}
    assert not later.note(0, 1011, 70.0), "the way back is no leap"
    assert again(leaps, 1605, 65.0).expire(55.0 + KEPT)
    assert not again(leaps, 1605, 5.0, boot="another").expire(4.0 + KEPT), "the clock of another boot says nothing"
    assert leaps.expire(55.0 + KEPT)
    assert leaps.fall_back(1010.0) == {}


def test_a_reload_keeps_what_is_known_and_forgets_who_has_left():
    leaps = known()
    leaps.note(0, 1605, 55.0)
    leaps.begin({0: 1605, 1: 7}, {})
    assert leaps.fall_back(1010.0) == {0: (1000, 1605)}
    leaps.note(0, 1705, 62.0)
    leaps.begin({1: 7}, {})
    assert leaps.kept() == {}


def test_of_a_file_counts_what_can_be_true():
    """Nothing above the highest epoch, or for longer than an hour."""
    rows = [(-1, 9.0), (0, 9.0), (7, 1e300), (1000, 9.0), (1 << 40, 9.0)]
    found = from_file(LeapFile("this", {SLOTS[0].hex(): rows}), SLOTS.items(), "this", 5.0)
    leaps = Leaps()
    leaps.begin({0: 1000}, found)
    assert leaps.kept() == {0: [Kept(7, None, 5.0 + KEPT)]}


@given(st.lists(st.tuples(st.integers(-20, 200), st.integers(0, 20)), max_size=60), st.integers(0, 2000))
def test_it_never_goes_back_to_what_was_not_highest_and_never_keeps_much(steps, limit):
    leaps, now, highest, seen = Leaps(), 0.0, 0, {0}
    leaps.begin({0: 0}, {})
    for rise, pause in steps:
        now += pause
        if rise > 0:
            highest += rise
            leaps.note(0, highest, now)
            seen.add(highest)
        assert len(kept(leaps)) <= MAX_KEPT
        assert kept(leaps) == sorted(set(kept(leaps)))
    for back, top in leaps.fall_back(float(limit)).values():
        assert back in seen
        assert back <= limit < top == highest
