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
    known = expression.known_variables(set())
    for problem in [*expression.check_when(text, known), *expression.check_amount(text, known)]:
        assert problem
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
    assert expression.check_when(text, expression.known_variables(set())) == [problem]


def test_check_knows_private_metrics_():
    known = expression.known_variables({"queue_depth"})
    assert expression.check_when("queue_depth > 0.5 && memory < 0.5", known) == []
    assert "queue_depth" in expression.check_when("queue_depth > 0.5", expression.known_variables(set()))[0]


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("ceil(current * cpu / 0.7)", []),
        ("load > 0.8 ? 0 : 3", []),
        ("min(maximum, max(minimum, floor(current / cpu)))", []),
        ("4", []),
        ("current * cpu > 1.0", ['gives False, not a number; write e.g. "ceil(current * cpu / 0.7)"']),
        ("current + 1", ["Unsupported operation: float + int; write numbers as 1.0, not 1"]),
        ("ceil(current * cpuu)", ["unknown variable: cpuu; did you mean cpu?"]),
        ("round(current)", None),
    ],
)
def test_amounts_are_numbers(text, problems):
    found = expression.check_amount(text, [*expression.known_variables(set()), *expression.BOUNDS])
    assert found == problems if problems is not None else found[0].startswith("no such function: round")
