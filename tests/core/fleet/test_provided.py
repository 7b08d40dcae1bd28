"""What a host says of what it gives: whole rounds, in whatever order their parts come."""

import math

from hypothesis import given
from hypothesis import strategies as st

from scentd.core.fleet import provided
from scentd.core.fleet.desired import DesiredAmount, Owner, Taken
from scentd.core.fleet.order import Serial
from scentd.core.fleet.provided import ProvidedPart, Rounds, Row, is_sound, observations, rows_of
from scentd.model import Applied, Observed, PriorWish


def told(amount=3.0, end=math.inf, timed=False, ended=False):
    return Taken("alloc", 7, 1, DesiredAmount("a", amount, end, timed, "p", 5.0), amount, end, ended)


def round_of(number, rows, looked=("rate",)):
    cut = provided.parts(rows)
    return [
        ProvidedPart(Serial(1, i), 0.0, number, i, len(cut), Owner(7, "one"), looked if i == 0 else (), part, ())
        for i, part in enumerate(cut)
    ]


def test_what_there_is_and_what_was_told_come_together():
    seen = Observed("rate", {"b": 2.0}, ("b",))
    rows = list(rows_of([seen], {("rate", "a"): told(), ("eyes", "c"): told()}))
    assert rows == [
        Row("rate", "a", 0.0, False, PriorWish(3.0, math.inf, "p", 5.0)),
        Row("rate", "b", 2.0, True, None),
    ]
    [part] = round_of(1, rows)
    assert provided.decode(provided.encode(part)) == part
    [found] = observations([part], ["rate", "eyes"])
    assert found == Observed("rate", {"a": 0.0, "b": 2.0}, ("b",), {"a": rows[0].wanted})


def test_what_a_wish_with_a_timeout_wanted_ends_and_what_has_ended_is_wanted_no_more():
    assert provided.wanted(told(end=9.0, timed=True)).until == 9.0
    assert provided.wanted(told(end=9.0)).until == math.inf, "the host's own end is no wish's"
    assert provided.wanted(told(end=9.0, timed=True, ended=True)) is None
    assert provided.wanted(None) is None


def test_of_what_the_host_could_not_look_at_nothing_is_said():
    assert list(observations(round_of(1, [Row("rate", "a", 1.0, False, None)], looked=()), ["rate"])) == []


def test_numbers_that_can_be_none():
    assert is_sound(Row("r", "a", 1.0, False, PriorWish(1.0)))
    for odd in (math.nan, math.inf, -1.0):
        assert not is_sound(Row("r", "a", odd, False, None))
        assert not is_sound(Row("r", "a", 1.0, False, PriorWish(odd)))
    assert not is_sound(Row("r", "a", 1.0, False, PriorWish(1.0, math.nan)))
    assert not is_sound(Row("r", "a", 1.0, False, PriorWish(1.0, since=math.nan)))


ROWS = [Row("rate", f"p{n}", float(n), False, None) for n in range(2 * provided.PART_ROWS + 1)]


@given(st.permutations(range(3)), st.permutations(range(3)))
def test_a_round_counts_when_it_is_whole(order, next_order):
    rounds = Rounds()
    first, second = round_of(1, ROWS), round_of(2, ROWS)
    assert [len(rounds.add(first[i])) for i in order] == [0, 0, 3]
    rounds.add(second[next_order[0]])
    whole = [rounds.add(second[i]) for i in next_order][-1]
    [found] = observations(whole, ["rate"])
    assert len(found.amounts) == len(ROWS)


def test_a_part_fits_into_a_message():
    wish = PriorWish(1 / 3, 1e10 / 3, "p" * 63, 1e10 / 3)
    rows = tuple(Row("r" * 63, f"{n:063}", 1 / 3, True, wish) for n in range(provided.PART_ROWS))
    applied = tuple(Applied("r" * 63, f"{n:063}", 1 / 3, 1 / 3, "x" * 403) for n in range(provided.APPLIED_MAX))
    part = ProvidedPart(Serial(2**60, 2**40), 1.0, 1, 0, 1, Owner(7, "i" * 100), ("r",) * 100, rows, applied)
    assert len(provided.encode(part)) < 1_000_000
