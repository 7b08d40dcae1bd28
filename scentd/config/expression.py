"""The language of policies: CEL (Common Expression Language, cel.dev), `has("item")`, and a few functions of numbers.

`compile` makes a program of an expression; `check` finds the mistakes of policies when a configuration is loaded.
core/allocate/rule.py sets the variables, and core/allocate/decide.py explains them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from scentd.config.schema import suggestion
from scentd.wire import layout

LENGTH_MAX = 1000  # characters; the CEL parser overflows its stack on chains of some 20,000 operators
NUMBERS = ("overall", "load", "age", "interval", "epoch")  # besides the metrics
BOUNDS = ("current", "minimum", "maximum")  # of the resource that a policy asks for
HAS_FUNCTION = "Has"  # the name of has("...") in the compiled program
RENAMINGS = {"network": "peer"}  # old names of variables -> new ones
AMOUNT_FUNCTIONS: Mapping[str, Callable[..., float]] = {
    "ceil": lambda x: float(math.ceil(x)),
    "floor": lambda x: float(math.floor(x)),
    "min": lambda *xs: float(min(xs)),
    "max": lambda *xs: float(max(xs)),
}
FUNCTIONS = (
    *AMOUNT_FUNCTIONS,
    "has",
    "size",
    "int",
    "double",
    "string",
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "type",
)

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
        return cel.compile(compiled_text(when))
    except ValueError as error:
        raise ValueError(syntax_error(str(error))) from None


def compiled_text(when: str) -> str:
    """The expression as CEL gets it."""
    return HAS.sub(lambda m: m["keep"] or HAS_FUNCTION, when)


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


def known_variables(private_metrics: Collection[str]) -> list[str]:
    """Those of every policy. `private_metrics`: the names that the peers' `metrics` give to private slots."""
    return sorted({*layout.METRICS.values(), *private_metrics, *NUMBERS, "peer"})


def check_when(when: str, known: Sequence[str]) -> list[str]:
    """Mistakes of an expression that is to say whether a policy holds."""
    return check(when, known, bool, "true or false; compare it with something, e.g. cpu > 0.8")


def check_amount(to: str, known: Sequence[str]) -> list[str]:
    """Mistakes of an expression that is to give an amount."""
    return check(to, known, float, 'a number; write e.g. "ceil(current * cpu / 0.7)"')


def check_peers(names: Sequence[str], peers: Sequence[str]) -> list[str]:
    """Mistakes in the policies' peers, in the order of the policies. `names`: each policy's peer; * is every peer."""
    return [
        f"policy[{i}].peer: no peer is named {name!r}{suggestion(name, peers)}"
        for i, name in enumerate(names)
        if name != "*" and name not in peers
    ]


def check(text: str, known: Sequence[str], kind: type, wanted: str) -> list[str]:
    """Mistakes of an expression over the variables `known` that must give a `kind`; `wanted` says so to people."""
    try:
        program = compile(text)
    except ValueError as error:
        return [str(error)]
    used = program.references()
    operators = ("_", "!", "-", "@")
    allowed = {*FUNCTIONS, HAS_FUNCTION}
    calls = sorted(f for f in used["functions"] if not f.startswith(operators) and f not in allowed)
    names = sorted(v for v in used["variables"] if v not in known and v not in FUNCTIONS)
    problems = [f"no such function: {f}{suggestion(f, FUNCTIONS)}" for f in calls]
    problems += [f"unknown variable: {v}{renaming(v) or suggestion(v, known)}" for v in names]
    return problems or trial(program, known, kind, wanted)


def trial(program: Any, known: Sequence[str], kind: type, wanted: str) -> list[str]:
    """Mistakes of type, which show when the expression is evaluated on sample values."""
    for number in (0.0, 0.4, 1.0):
        for contained in (True, False):
            values: dict[str, Any] = {
                **dict.fromkeys(known, number),
                **AMOUNT_FUNCTIONS,
                "peer": "n",
                HAS_FUNCTION: lambda _, c=contained: c,
            }
            try:
                result = program.execute(values)
            except (ValueError, TypeError, RuntimeError) as error:
                if "OverflowError" in str(error) or "cannot convert float NaN" in str(error):
                    continue  # ceil() of a division by a sample value of zero
                way_out = "write numbers as 1.0, not 1" if isinstance(error, TypeError) else "see the CEL specification"
                return [f"{str(error).split('. ')[0]}; {way_out}"]
            except ArithmeticError:
                continue
            if not is_a(kind, result):
                return [f"gives {result!r}, not {wanted}"]
    return []


def is_a(kind: type, result: object) -> bool:
    """Whether a result is a bool, or for `float` a number and no bool."""
    return type(result) is bool if kind is bool else type(result) in (int, float)
