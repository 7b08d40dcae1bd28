import pytest
from hypothesis import given
from hypothesis import strategies as st

from scentd.config import selector


@pytest.mark.parametrize(
    ("text", "labels", "matches"),
    [
        ("up", {"a": "b"}, True),
        ("up{}", {}, True),
        ('up{a="b"}', {"a": "b", "c": "d"}, True),
        ('up{a="b"}', {"a": "c"}, False),
        ('up{a=""}', {}, True),
        (' up { a = "b" , c!="d", } ', {"a": "b", "c": "e"}, True),
        ('up{a="b",c!="d"}', {"a": "b", "c": "d"}, False),
        ('up{a=~"b.*"}', {"a": "bcd"}, True),
        ('up{a=~"b"}', {"a": "bcd"}, False),
        ('up{a!~"b|c"}', {"a": "d"}, True),
        ('up{a!~"b|c"}', {"a": "c"}, False),
        (r'up{a="q\"}\\,\n"}', {"a": 'q"}\\,\n'}, True),
    ],
)
def test_selectors_match_as_in_promql(text, labels, matches):
    parsed = selector.parse(text)
    assert parsed.name == "up"
    assert parsed.matches(labels) is matches


@pytest.mark.parametrize(
    "text", ["", "1up", "up{", "up}", "up{a}", "up{a=b}", 'up{a="b"c="d"}', 'up{a="b"}x', 'up{a=~"("}', "up{,,}", "a b"]
)
def test_mistakes_are_refused_with_an_example(text):
    with pytest.raises(ValueError, match="http_requests_total"):
        selector.parse(text)


@given(st.text(alphabet='up{}="a,\\~! \n(é', max_size=40))
def test_any_text_is_a_selector_or_a_value_error(text):
    try:
        parsed = selector.parse(text)
    except ValueError:
        return
    assert parsed.matches({"a": "b"}) in (True, False)
