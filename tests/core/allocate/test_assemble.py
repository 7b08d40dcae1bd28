"""Fragments in any order and number make one profile an epoch, and no more state than that."""

from hypothesis import given
from hypothesis import strategies as st

from scentd.core.allocate.assemble import Assembler
from scentd.model import Fragment
from scentd.wire import layout

KEYS = b"themours"


def fragment(index: int, epoch: int = 100, pair: int = 0, key_ids: bytes = KEYS) -> Fragment:
    data = bytes((pair, epoch & 255, index)).ljust(13, b".")
    return Fragment(pair, epoch, index, data, 0.0, 0.0, b"\n\0\0\1", key_ids)


def whole(epoch: int = 100, pair: int = 0) -> bytes:
    return b"".join(fragment(i, epoch, pair).data for i in range(layout.FRAGMENTS))


@given(st.permutations(range(10)), st.lists(st.integers(0, 9), max_size=30))
def test_any_order_and_repetition(order, more):
    """Once, when the last missing one comes; repetitions before and behind say nothing."""
    assembler = Assembler()
    made = [assembler.add(fragment(i)) for i in (*more, *order, *more)]
    assert [m for m in made if m] == [whole()]
    assert made.index(whole()) < len(more) + 10


def test_nine_are_not_enough():
    assembler = Assembler()
    assert not any(assembler.add(fragment(i)) for i in range(9) for _ in range(3))


def test_a_newer_epoch_takes_the_place():
    assembler = Assembler()
    for i in range(9):
        assembler.add(fragment(i, 100))
    for i in range(9):
        assembler.add(fragment(i, 101))
    assert assembler.add(fragment(9, 100)) is None, "the older cannot be completed any more"
    assert assembler.add(fragment(9, 101)) == whole(101)


def test_pairs_do_not_mix():
    assembler = Assembler()
    for i in range(9):
        assembler.add(fragment(i, pair=1))
        assembler.add(fragment(i, pair=2))
    assert assembler.add(fragment(9, pair=2)) == whole(pair=2)
    assert assembler.add(fragment(9, pair=1)) == whole(pair=1)


def test_keys_do_not_mix():
    """An epoch is sealed once. What comes under other keys is of somebody else's epoch of the same number."""
    assembler = Assembler()
    for i in range(9):
        assembler.add(fragment(i))
    assert not any(assembler.add(fragment(i, key_ids=b"themnext")) for i in range(10))
    assert assembler.add(fragment(9)) == whole()
    assert [m for i in range(10) if (m := assembler.add(fragment(i, 101, key_ids=b"themnext")))] == [whole(101)]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2**32 - 1), st.integers(0, 3)), max_size=200))
def test_state_is_bounded_by_the_pairs(steps):
    """Invariant 4: one set of at most ten fragments for each pair, whatever comes."""
    assembler = Assembler()
    for index, epoch, pair in steps:
        assembler.add(fragment(index, epoch, pair))
    assert len(assembler._parts) <= 4
    assert all(len(parts) <= 10 for *_, parts in assembler._parts.values())


def test_a_pair_that_left_is_forgotten():
    assembler = Assembler()
    for i in range(9):
        assembler.add(fragment(i, pair=1))
        assembler.add(fragment(i, pair=2))
    assembler.keep_only({2})
    assert assembler.add(fragment(9, pair=1)) is None
    assert assembler.add(fragment(9, pair=2)) == whole(pair=2)
