"""Which series of a Prometheus text page a source means: name{label="value",other=~"expression"}.

The selector is that of PromQL (four operators, expressions anchored at both
ends), so that what works in a Prometheus console works here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
SELECTOR = re.compile(rf"\s*({NAME})\s*(?:\{{(.*)\}})?\s*", re.DOTALL)
MATCHER = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"\s*', re.DOTALL)
ESCAPE = re.compile(r"\\(.)", re.DOTALL)
OPERATORS: dict[str, Callable[[str, str], bool]] = {
    "=": lambda value, wanted: value == wanted,
    "!=": lambda value, wanted: value != wanted,
    "=~": lambda value, wanted: re.fullmatch(wanted, value) is not None,
    "!~": lambda value, wanted: re.fullmatch(wanted, value) is None,
}
EXAMPLE = 'write http_requests_total or http_requests_total{code="200",path=~"/api/.*"}'


@dataclass(frozen=True, slots=True)
class Selector:
    name: str
    matchers: tuple[tuple[str, str, str], ...]  # label, operator, value

    def matches(self, labels: Mapping[str, str]) -> bool:
        """A label that is not there has the value "", as in PromQL."""
        return all(OPERATORS[operator](labels.get(label, ""), value) for label, operator, value in self.matchers)


def parse(text: str) -> Selector:
    """Raises ValueError with an example."""
    selector = SELECTOR.fullmatch(text)
    if selector is None:
        raise ValueError(f"{text!r} selects no series; {EXAMPLE}")
    return Selector(selector[1], tuple(matchers(text, selector[2] or "")))


def matchers(text: str, inside: str) -> Iterator[tuple[str, str, str]]:
    at = 0
    while inside[at:].strip():
        found = MATCHER.match(inside, at)
        if found is None:
            raise ValueError(f"{text!r}: not a label matcher: {inside[at:]!r}; {EXAMPLE}")
        label, operator, value = found[1], found[2], ESCAPE.sub(lambda m: "\n" if m[1] == "n" else m[1], found[3])
        if operator.endswith("~"):
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"{text!r}: {value!r} is not a regular expression: {error}; {EXAMPLE}") from None
        yield label, operator, value
        at = found.end()
        if at < len(inside) and inside[at] != ",":
            raise ValueError(f"{text!r}: a comma is missing before {inside[at:]!r}; {EXAMPLE}")
        at += 1
