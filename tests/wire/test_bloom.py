from hypothesis import given
from hypothesis import strategies as st
from wire_strategies import quick

from scentd.wire import bloom


@quick
@given(st.sets(st.text(max_size=40), max_size=40), st.integers(0, 2**32 - 1))
def test_what_is_in_is_found(items, epoch):
    made = bloom.make(items, epoch)
    assert len(made) == 32
    assert all(bloom.contains(made, epoch, item) for item in items)


def test_bit_0_is_the_highest_of_the_first_byte():
    made = bloom.make(["a=b"], 7)
    bits = int.from_bytes(made, "big")
    assert {255 - i for i in range(256) if bits >> i & 1} == set(bloom.positions("a=b", 7))


def test_an_empty_filter_has_nothing():
    assert not bloom.contains(bytes(32), 7, "a=b")


def test_false_positives_do_not_repeat_from_epoch_to_epoch():
    items = [f"label={i}" for i in range(30)]
    foreign = [f"other={i}" for i in range(2000)]
    false = [{f for f in foreign if bloom.contains(bloom.make(items, e), e, f)} for e in (1, 2)]
    assert all(0 < len(f) < 150 for f in false)  # (1 - e^(-150/256))^5 of them: 34
    assert len(false[0] & false[1]) < len(false[0]) / 4
