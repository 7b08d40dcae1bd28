"""The language of policies: CEL (Common Expression Language, cel.dev) and `has("item")`.

`compile` makes a program of an expression; `check` finds the mistakes of policies when a configuration is loaded.
core/allocate/decide.py sets the variables, and explains them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from scentd.config.schema import suggestion
from scentd.wire import layout

LENGTH_MAX = 1000  # characters; the CEL parser overflows its stack on chains of some 20,000 operators
NUMBERS = ("overall", "load", "age", "interval", "epoch")  # besides the metrics
HAS_FUNCTION = "Has"  # the name of has("...") in the compiled program
RENAMINGS = {"network": "peer"}  # old names of variables -> new ones
FUNCTIONS = ("has", "size", "int", "double", "string", "contains", "startsWith", "endsWith", "matches", "type")

# In CEL has() is a macro that takes only a field; ours takes text. HAS_FUNCTION is as long as "has", so the columns in
# error messages stay right. The pattern matches literals and comments first, so that they stay as they are.
KEEP = r"""(?P<keep>//[^\n]*
      | [bB]?[rR][bB]?(?:\"\"\".*?\"\"\"|'''.*?'''|"[^"\n]*"|'[^'\n]*')
      | \"\"\"(?:\\.|.)*?\"\"\" | '''(?:\\.|.)*?'''
      | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*')"""
HAS = re.compile(rf"""{KEEP} | (?<![\w.])has(?=\s*\(\s*[rR]?["'])""", re.VERBOSE | re.DOTALL)
# A variable's old name. One behind a dot is a field, and one before a bracket a function.
OLD = re.compile(rf"{KEEP} | (?<![\w.])(?P<old>{'|'.join(RENAMINGS)})(?!\w|\s*\()", re.VERBOSE | re.DOTALL)


def renaming(variable: str) -> str:
    return f"; it is called {RENAMINGS[variable]} now" if variable in RENAMINGS else ""


def renamed(when: str) -> str:
    """An expression with today's names of variables. Literals and comments stay."""
    return OLD.sub(lambda m: m["keep"] or RENAMINGS[m["old"]], when)


def compile(when: str) -> Any:
    """The compiled expression. Raises ValueError, "column 5: what is wrong"."""
    import cel  # it loads a command line of its own, so it costs 0.2 s and 14 MB; only policies should pay for it

    if len(when) > LENGTH_MAX:
        raise ValueError(f"{len(when)} characters; at most {LENGTH_MAX}, so make two policies of it")
    try:
        return cel.compile(HAS.sub(lambda m: m["keep"] or HAS_FUNCTION, when))
    except ValueError as error:
        raise ValueError(syntax_error(str(error))) from None


def syntax_error(message: str) -> str:
    """The parser's first error, in one line. CEL takes has() of anything but text for its macro."""
    match = re.search(r"ERROR: <input>:(\d+):(\d+): (?:Syntax error: )?([^\n]*)", message)
    if match is None:
        return "not a CEL expression: too many nested brackets or operators; make two policies of it"
    line, column, what = match.groups()
    if "Recursion limit" in what:
        what = "brackets nested too deep; make two policies of it"
    what = re.sub(r"\s*expecting .*", "", what).replace("mismatched input '<EOF>'", "ends too early")
    if "has() macro" in what:
        what = 'has takes a text: has("region=eu-west")'
    return f"{'' if line == '1' else f'line {line}, '}column {column}: {what}"


def check(expressions: Sequence[str], private_metrics: Collection[str]) -> list[str]:
    """Mistakes in the policies' expressions, in the order of the policies, each as "policy[i].when: what".

    `private_metrics` are the names that the peers' `metrics` give to private slots.
    """
    known = sorted({*layout.METRICS.values(), *private_metrics, *NUMBERS, "peer"})
    return [f"policy[{i}].when: {mistake}" for i, when in enumerate(expressions) for mistake in check_when(when, known)]


def check_peers(names: Sequence[str], peers: Sequence[str]) -> list[str]:
    """Mistakes in the policies' peers, in the order of the policies. `names`: each policy's peer; * is every peer."""
    return [
        f"policy[{i}].peer: no peer is named {name!r}{suggestion(name, peers)}"
        for i, name in enumerate(names)
        if name != "*" and name not in peers
    ]


def check_when(when: str, known: Sequence[str]) -> list[str]:
    try:
        program = compile(when)
    except ValueError as error:
        return [str(error)]
    used = program.references()
    operators = ("_", "!", "-", "@")
    allowed = {*FUNCTIONS, HAS_FUNCTION}
    calls = sorted(f for f in used["functions"] if not f.startswith(operators) and f not in allowed)
    names = sorted(v for v in used["variables"] if v not in known and v not in FUNCTIONS)
    problems = [f"no such function: {f}{suggestion(f, FUNCTIONS)}" for f in calls]
    problems += [f"unknown variable: {v}{renaming(v) or suggestion(v, known)}" for v in names]
    return problems or trial(program, known)


def trial(program: Any, known: Sequence[str]) -> list[str]:
    """Mistakes of type, which show when the expression is evaluated on sample values."""
    for number in (0.0, 0.4, 1.0):
        for contained in (True, False):
            values: dict[str, Any] = {
                **dict.fromkeys(known, number),
                "peer": "n",
                HAS_FUNCTION: lambda _, c=contained: c,
            }
            try:
                result = program.execute(values)
            except (ValueError, TypeError, RuntimeError) as error:
                way_out = "write numbers as 1.0, not 1" if isinstance(error, TypeError) else "see the CEL specification"
                return [f"{str(error).split('. ')[0]}; {way_out}"]
            except ArithmeticError:
                continue
            if not isinstance(result, bool):
                return [f"gives {result!r}, not true or false; compare it with something, e.g. cpu > 0.8"]
    return []
