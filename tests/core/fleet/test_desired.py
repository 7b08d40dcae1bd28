"""What a host takes of what an allocator wants: nothing older, nothing of others, no restriction beyond its end."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from scentd.config.resource import Resource
from scentd.core.allocate.entry import AmountEntry, Wish
from scentd.core.fleet import desired
from scentd.core.fleet.desired import RESTRICT, DesiredAmount, DesiredPart, DesiredState, desired_amount

RATE = Resource(name="rate", minimum=1.0, maximum=5.0, normal=2.0)


class Cutting(Resource, tag_field="kind", tag="cutting"):
    restricts = True


def amount(value=3.0, end=math.inf, peer="a", timed=False):
    return DesiredAmount(peer, value, end, timed, "p", 0.0)


def part(term=7, number=1, *amounts, instance="one", resource="rate"):
    return DesiredPart(instance, term, number, 0.0, resource, amounts or (amount(),))


def state(*resources):
    made = DesiredState()
    made.configure(resources or [RATE], ["a", "b"])
    return made


def taken(made, said, now=0.0, clock=1000.0, allocator="alloc"):
    """Amounts that change, and names of what was odd, or of what is wrong with the whole."""
    why_not = made.why_not(allocator, said, now)
    return why_not or made.take(allocator, said, now, clock)


def test_a_part_and_its_end_travel():
    said = part(7, 1, amount(), amount(0.0, 5.0, "b", True))
    assert desired.decode(desired.encode(said)) == said


def test_what_is_new_changes_and_what_is_the_same_does_not():
    made = state()
    assert taken(made, part(7, 1)) == ({"a": 3.0}, set())
    assert taken(made, part(7, 2)) == ({}, set())
    assert taken(made, part(7, 3, amount(4.0))) == ({"a": 4.0}, set())
    assert made.given() == {"rate": {"a": 4.0}}


def test_what_is_old_or_of_others_is_refused_by_name():
    made = state()
    taken(made, part(7, 5))
    assert taken(made, part(7, 5, amount(1.0))) == ({}, {"replayed"})
    assert taken(made, part(6, 9)) == "old_term"
    assert taken(made, part(7, 9, instance="two")) == "second_allocator"
    assert taken(made, part(8, 1), allocator="other") == "second_allocator"
    assert taken(made, part(8, 1), allocator="other", now=61.0) == ({}, set())
    assert taken(made, part(8, 1, resource="eyes")) == "unknown_resource"
    assert taken(state(), part(8, 1, amount(peer="c"))) == ({}, {"unknown_peer"})
    for odd in (math.nan, math.inf, -1.0):
        assert taken(made, part(9, 1, amount(odd)), now=200.0) == "garbage"
    assert taken(made, part(9, 1, amount(end=math.nan)), now=200.0) == "garbage"


def test_a_new_owner_begins_with_any_number():
    made = state()
    taken(made, part(7, 500))
    assert taken(made, part(8, 1, amount(1.0), instance="two")) == ({"a": 1.0}, set())


def test_the_bounds_are_the_hosts_own_and_whole_amounts_are_whole():
    made = state()
    assert taken(made, part(7, 1, amount(9.0), amount(0.0, peer="b"))) == ({"a": 5.0, "b": 1.0}, {"clamped"})
    assert taken(made, part(7, 2, amount(2.5))) == ({"a": 3.0}, {"clamped"})


def test_a_restriction_ends_by_steady_seconds_and_comes_back_if_it_is_said_again():
    made = state()
    taken(made, part(7, 1, amount(1.0, end=1010.0)), now=50.0)
    assert (made.due(59.9), made.restricted) == ({}, 1)
    assert (made.due(60.0), made.restricted) == ({"rate": {"a": 2.0}}, 0)
    assert made.given() == {"rate": {"a": 2.0}}
    assert made.due(100.0) == {}
    assert taken(made, part(7, 2, amount(1.0, end=1090.0)), now=100.0, clock=1050.0) == ({"a": 1.0}, set())


def test_an_end_that_has_passed_gives_the_usual_amount():
    made = state()
    assert taken(made, part(7, 1, amount(1.0, end=999.0))) == ({"a": 2.0}, set())
    assert made.restricted == 0


def test_a_later_end_counts_and_one_without_an_end_stays():
    made = state()
    taken(made, part(7, 1, amount(1.0, end=1010.0)))
    taken(made, part(7, 2, amount(1.0, end=1030.0)))
    assert made.due(20.0) == {}
    taken(made, part(7, 3, amount(1.0)))
    assert made.due(1e9) == {}


def restarted(made, now, clock):
    owners, kept = made.take_unsaved()
    other = state()
    other.restore(owners, kept, now, clock)
    return other


def test_over_a_restart_nothing_older_is_taken_and_an_end_stays():
    made = state()
    taken(made, part(7, 5, amount(1.0, end=1010.0)))
    again = restarted(made, now=3.0, clock=1004.0)
    assert again.given() == {"rate": {"a": 1.0}}
    assert taken(again, part(7, 5), now=3.0) == ({}, {"replayed"})
    assert taken(again, part(6, 9), now=3.0) == "old_term"
    assert again.due(8.9) == {}
    assert again.due(9.1) == {"rate": {"a": 2.0}}


def test_a_clock_that_is_set_back_makes_no_restriction_longer():
    made = state()
    taken(made, part(7, 1, amount(1.0, end=1010.0)))
    again = restarted(made, now=0.0, clock=500.0)
    assert again.due(10.1) == {"rate": {"a": 2.0}}


def test_what_carries_an_end():
    cutting = Cutting(name="c", minimum=0.0, maximum=1.0, normal=1.0)
    entry = AmountEntry(desired=0.0)
    assert desired_amount(cutting, "a", entry, 100.0).end == 100.0 + RESTRICT
    assert desired_amount(RATE, "a", entry, 100.0).end == math.inf
    entry.wishes["p"], entry.timed = Wish(0.0, "safety", 130.0, 1, ""), True
    for section in (cutting, RATE):
        said = desired_amount(section, "a", entry, 100.0)
        assert (said.end, said.timed) == (130.0, True)
    assert desired_amount(cutting, "a", AmountEntry(desired=1.0), 100.0).end == math.inf
    assert desired_amount(cutting, "a", AmountEntry(), 100.0) is None


def test_groups_hold_all_peers_once():
    peers = [f"p{n}" for n in range(4001)]
    assert [peer for group in desired.groups(peers) for peer in group] == peers
    assert max(map(len, desired.groups(peers))) <= desired.PART_PEERS
    assert desired.groups([]) == []


def test_a_part_of_many_peers_with_long_names_fits_into_a_message():
    long = [replace(amount(1e9 / 3, 1e10 / 3, f"{n:063}", True), policy="p" * 63) for n in range(desired.PART_PEERS)]
    assert len(desired.encode(part(2**40, 2**40, *long))) < 1_000_000


PARTS = st.lists(
    st.tuples(
        st.integers(1, 4),  # term
        st.integers(1, 6),  # number
        st.sampled_from((0.0, 1.0, 3.0, 9.0)),
        st.sampled_from((math.inf, 5.0, 20.0)),  # seconds until the end
        st.floats(0.0, 8.0),  # that pass before
    ),
    max_size=40,
)


@settings(max_examples=300)
@given(PARTS)
def test_whatever_order_a_bus_makes_of_it_the_highest_number_counts_and_ends_are_kept(moves):
    made, now, highest, end = state(), 0.0, (0, 0), math.inf
    for term, number, value, seconds, pause in moves:
        now += pause
        changes = made.due(now)
        assert bool(changes) == (end <= now)
        end = math.inf if changes else end
        made.why_not("alloc", part(term, number), now)
        said = part(term, number, amount(value, 1000.0 + now + seconds))
        result = taken(made, said, now, 1000.0 + now)
        if (term, number) > highest:
            assert result[1] <= {"clamped"}
            highest, end = (term, number), now + seconds
        else:
            assert result == "old_term" or result == ({}, {"replayed"})
        assert all(1.0 <= given <= 5.0 for given in made.given().get("rate", {}).values())
    again = restarted(made, now, 1000.0 + now)
    assert again.given() == made.given()
    for term, number, value, _, _ in moves:
        assert taken(again, part(term, number, amount(value)), now) in ("old_term", ({}, {"replayed"}))
