"""What the reader sees: sentences, commands to type, and the table of what was measured."""

from __future__ import annotations

import shlex
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

WIDTH = 110


class DemoError(Exception):
    """The story cannot go on; says what, where and the way out."""


@dataclass(frozen=True, slots=True)
class Row:
    """One claim of the story, what was measured for it, and whether that bears it out."""

    part: str
    claim: str
    measured: str
    holds: bool


class Story:
    """Tells as it goes; `rows` is the table at the end."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._began = time.monotonic()
        self._part = ""
        self.rows: list[Row] = []

    @property
    def ok(self) -> bool:
        return bool(self.rows) and all(row.holds for row in self.rows)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def part(self, letter: str, title: str) -> None:
        self._part = letter
        self._write(f"\n[{self.seconds:4.1f} s] ({letter}) {title}")

    def say(self, text: str) -> None:
        for line in textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False):
            self._write(f"  {line}")

    def command(self, argv: Sequence[str]) -> None:
        self._write(f"  $ {shlex.join(argv)}")

    def output(self, text: str, lines: int = 12) -> None:
        """What a command printed, at most so many lines of it."""
        shown = text.rstrip().splitlines()
        for line in shown[:lines]:
            self._write(f"      {line[: 2 * WIDTH]}")
        if len(shown) > lines:
            self._write(f"      ... and {len(shown) - lines} lines more")

    def check(self, claim: str, holds: bool, measured: str) -> bool:
        """A line of the table, told at once. Returns `holds`."""
        self.rows.append(Row(self._part, claim, measured, bool(holds)))
        self._write(f"  {'ok  ' if holds else 'FAIL'} {claim}: {measured}")
        return bool(holds)

    def table(self) -> None:
        claim = max((len(row.claim) for row in self.rows), default=0)
        self._write("")
        for row in self.rows:
            self._write(f"  ({row.part}) {row.claim:<{claim}}  {'ok  ' if row.holds else 'FAIL'}  {row.measured}")
        good = sum(row.holds for row in self.rows)
        self._write(f"\n  {good} of {len(self.rows)} as they should be, in {self.seconds:.1f} s")

    def _write(self, line: str) -> None:
        print(line, file=self._out, flush=True)


def out_of_the_way() -> TextIO:
    """Where the story goes when standard output is for JSON."""
    return sys.stderr
