import pytest
from hypothesis import given
from hypothesis import strategies as st

from scentd.config import expression


def test_literals_and_comments_are_left_alone():
    kept = [
        "'has(\"x\")'",
        "\"has('x') \\\" has('y')\"",
        "r'\\' + \"has('x')\"",
        "'''\nhas(\"x\") ' '''",
        'a // has("x")',
    ]
    for text in [*kept, 'xhas("x")', "has(cpu)", 'has_("x")']:
        assert expression.HAS.sub(lambda m: m["keep"] or "Has", text) == text


@given(st.text(alphabet="has(\"')\\ /r\nx", max_size=30))
def test_only_the_name_is_rewritten(text):
    after = expression.HAS.sub(lambda m: m["keep"] or expression.HAS_FUNCTION, text)
    assert after.replace(expression.HAS_FUNCTION, "has") == text


@given(st.text(max_size=60) | st.text(alphabet="cpu has(\"')0.1<>&|!?:[]{},+-*/%=\n", max_size=60))
def test_check_never_raises(text):
    for problem in expression.check([text], set()):
        assert problem.startswith("policy[0].when: ")
        assert "\n" not in problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("cpuu > 0.8", "unknown variable: cpuu; did you mean cpu?"),
        ('network == "a"', "unknown variable: network; it is called peer now"),
        ("cpu >", "column 6: ends too early"),
        ("cpu > 0.8 )", "column 11: extraneous input ')'"),
        ('has("x") && cpu > 0.8 )', "column 23: extraneous input ')'"),
        ("true &&\n cpu >", "line 2, column 7: ends too early"),
        ("cpu", "gives 0.0, not true or false; compare it with something, e.g. cpu > 0.8"),
        ("cpu + 1 > 1.5", "Unsupported operation: float + int; write numbers as 1.0, not 1"),
        ('has("x") && cpu + 1 > 1.5', "Unsupported operation: float + int; write numbers as 1.0, not 1"),
        ("has(cpu)", 'column 5: has takes a text: has("region=eu-west")'),
        ('hass("x")', "no such function: hass; did you mean has?"),
        ("(" * 200 + "true" + ")" * 200, "column 97: brackets nested too deep; make two policies of it"),
        ("true" + " && true" * 200, "1604 characters; at most 1000, so make two policies of it"),
    ],
)
def test_check_names_the_mistake(text, problem):
    assert expression.check(["cpu > 0.8", text], set()) == [f"policy[1].when: {problem}"]


def test_check_knows_private_metrics_():
    assert expression.check(["queue_depth > 0.5 && memory < 0.5"], {"queue_depth"}) == []
    assert "queue_depth" in expression.check(["queue_depth > 0.5"], set())[0]
