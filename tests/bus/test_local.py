"""The bus inside one process."""

from dataclasses import dataclass

from scentd.bus.local import LocalBus


@dataclass
class Word:
    text: str


class Shout(Word):
    pass


def test_a_value_goes_to_who_takes_exactly_its_type_in_order():
    bus, words = LocalBus(), []
    bus.subscribe(Word, lambda word: words.append(("one", word.text)))
    bus.subscribe(Word, lambda word: words.append(("two", word.text)))
    bus.publish(Word("a"))
    bus.publish(Shout("b"))
    bus.publish("c")
    assert words == [("one", "a"), ("two", "a")]


def test_what_one_cannot_take_is_counted_and_the_others_get_it(caplog):
    bus, words = LocalBus(), []
    bus.subscribe(Word, lambda _: 1 / 0)
    bus.subscribe(Word, words.append)
    bus.publish(Word("a"))
    bus.publish(Word("b"))
    assert [word.text for word in words] == ["a", "b"]
    assert bus.failures == {"Word": 2}
    assert "Word could not be taken" in caplog.text
    assert "ZeroDivisionError" in caplog.text
