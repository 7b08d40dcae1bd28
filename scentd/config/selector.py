"""Selects series of a Prometheus text page: name{label="value",other=~"expression"}.

The selector is that of PromQL: it has the same four operators, and anchors expressions at both ends. A selector that
works in a Prometheus console works here.
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
    "=": lambda value, pattern: value == pattern,
    "!=": lambda value, pattern: value != pattern,
    "=~": lambda value, pattern: re.fullmatch(pattern, value) is not None,
    "!~": lambda value, pattern: re.fullmatch(pattern, value) is None,
}
EXAMPLE = 'write http_requests_total or http_requests_total{code="200",path=~"/api/.*"}'


@dataclass(frozen=True, slots=True)
class Selector:
    name: str
    matchers: tuple[tuple[str, str, str], ...]  # label, operator, value

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether the labels match. A missing label has the value "", as in PromQL."""
        return all(OPERATORS[operator](labels.get(label, ""), value) for label, operator, value in self.matchers)


def parse(text: str) -> Selector:
    """The selector of a text. Raises ValueError with an example."""
    selector = SELECTOR.fullmatch(text)
    if selector is None:
        raise ValueError(f"{text!r} selects no series; {EXAMPLE}")
    return Selector(selector[1], tuple(matchers(text, selector[2] or "")))


def matchers(text: str, inside: str) -> Iterator[tuple[str, str, str]]:
    at = 0
    while inside[at:].strip():
        match = MATCHER.match(inside, at)
        if match is None:
            raise ValueError(f"{text!r}: not a label matcher: {inside[at:]!r}; {EXAMPLE}")
        label, operator, value = match[1], match[2], ESCAPE.sub(lambda m: "\n" if m[1] == "n" else m[1], match[3])
        if operator.endswith("~"):
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"{text!r}: {value!r} is not a regular expression: {error}; {EXAMPLE}") from None
        yield label, operator, value
        at = match.end()
        if at < len(inside) and inside[at] != ",":
            raise ValueError(f"{text!r}: a comma is missing before {inside[at:]!r}; {EXAMPLE}")
        at += 1
