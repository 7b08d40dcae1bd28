"""Rewrites a configuration of old names. Pure: text in, text out; comments and layout stay.

Lines are rewritten where they name a table or a key that has another name today, and so are policies' expressions. Then
old and new text are parsed, and the new data must be the old with the new names: whatever stands in a form that this
module does not follow is refused, never half done.
"""

from __future__ import annotations

import re
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scentd.config import expression
from scentd.config.policy import Policy
from scentd.config.schema import Table, members, unwrap
from scentd.config.sections import Config
from scentd.errors import ConfigError

HEADER = re.compile(r"(?P<open>\s*\[\[?\s*)(?P<path>[A-Za-z0-9_.\s-]+?)(?P<close>\s*\]\]?.*)", re.DOTALL)
KEY = re.compile(r"(?P<indent>\s*)(?P<key>[A-Za-z0-9_-]+)(?P<rest>\s*=.*)", re.DOTALL)
# A TOML string of one line behind a key, and what follows it.
QUOTED = re.compile(
    r"""(?P<before>\s*=\s*)(?P<text>"(?:\\.|[^"\\])*"|'[^']*')(?P<behind>[^"'].*)?""",
    re.DOTALL,
)

Section = type[Table] | None  # None: a table whose type depends on its kind, or that is no section


def migrate(text: str) -> tuple[str, list[str]]:
    """(the text with today's names, what was renamed). Raises ConfigError."""
    try:
        wanted, found = renamed(tomllib.loads(text), Config, "")
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"not valid TOML: {error}"]) from None
    made = "".join(lines(text))
    try:
        same = tomllib.loads(made) == wanted
    except tomllib.TOMLDecodeError:
        same = False
    if not same:
        by_hand = "and change this by hand: it stands here in a form that is not rewritten"
        raise ConfigError([f"{old}: write {new} now, {by_hand}" for old, new in found])
    return made, [f"{old} -> {new}" for old, new in found]


def renamed(data: Any, section: Section, path: str) -> tuple[Any, list[tuple[str, str]]]:
    """Parsed TOML with today's names, and (old, new) of each."""
    if isinstance(data, list):
        parts = [renamed(item, section, f"{path}[{i}]") for i, item in enumerate(data)]
        return [part for part, _ in parts], [pair for _, pairs in parts for pair in pairs]
    if not isinstance(data, dict) or section is None:
        return data, []
    made, found = {}, []
    for key, value in data.items():
        new = section.renamings.get(key, key)
        place = f"{path}.{key}" if path else key
        if new != key:
            found.append((place, new))
        if section is Policy and key == "when" and isinstance(value, str):
            made[new] = expression.renamed(value)
            if made[new] != value:
                found.append((place, made[new]))
            continue
        made[new], inner = renamed(value, inner_section(section, new), place)
        found += inner
    return made, found


def inner_section(section: Section, key: str) -> Section:
    """The section below a key."""
    if section is None or key not in members(section)[1]:
        return None
    hints, fields = members(section)
    kind, _ = unwrap(hints[fields[key].name])
    if typing.get_origin(kind) is list:
        kind, _ = unwrap(typing.get_args(kind)[0])
    return kind if isinstance(kind, type) and issubclass(kind, Table) else None


def lines(text: str) -> Iterator[str]:
    """The text's lines, with today's names."""
    section: Section = Config
    for line in text.splitlines(keepends=True):
        header, key = HEADER.fullmatch(line), KEY.fullmatch(line)
        if header is not None and line.lstrip().startswith("["):
            path, section = follow([part.strip() for part in header["path"].split(".")])
            yield header["open"] + ".".join(path) + header["close"]
        elif key is not None and section is not None:
            name, rest = section.renamings.get(key["key"], key["key"]), key["rest"]
            if section is Policy and name == "when":
                rest = renamed_expression(rest)
            yield key["indent"] + name + rest
        else:
            yield line


def renamed_expression(rest: str) -> str:
    """What stands behind the key of an expression, with today's names, if it is a string of one line."""
    found = QUOTED.fullmatch(rest)
    if found is None:
        return rest
    before = tomllib.loads(f"when = {found['text']}")["when"]
    made = expression.renamed(before)
    if made == before:
        return rest
    if found["text"].startswith('"'):
        made = made.replace("\\", "\\\\").replace('"', '\\"')
    return f"{found['before']}{found['text'][0]}{made}{found['text'][0]}{found['behind'] or ''}"


def follow(path: Sequence[str]) -> tuple[list[str], Section]:
    """A header's path by today's names, and the section that it begins."""
    section: Section = Config
    made = []
    for part in path:
        renamings: Mapping[str, str] = section.renamings if section is not None else {}
        made.append(renamings.get(part, part))
        section = inner_section(section, made[-1])
    return made, section
