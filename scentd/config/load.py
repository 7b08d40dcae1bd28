"""The only reader of the configuration file.

`load(path, kinds)` returns a Config, or raises ConfigError with every mistake of the file at once, each under its path.
The types of sections of a kind come from the tables of kinds. Loading starts nothing.

`include = ["policies/*.toml"]` at the top adds the arrays of tables of other files ([[policy]], [[resource]] ...),
in the order of their names; mistakes there are told under the other file's name.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from scentd.config.schema import Kinds, convert
from scentd.config.sections import Config
from scentd.errors import ConfigError

BYTE_ORDER_MARK = "\ufeff"
INCLUDE = "include"
PLACE = re.compile(r"^(\w+)\[(\d+)\]")  # of a mistake: policy[3].when
Places = dict[tuple[str, int], tuple[Path, int]]  # (section, its number in all) -> (file, its number there)


def load(path: str | Path, kinds: Kinds) -> Config:
    """Read and check a configuration file. Raises ConfigError with all its mistakes."""
    data = read(Path(path), "name the file with --config, or begin with $(scentd files scentd.example.toml)")
    data, places = merged(data, Path(path))
    try:
        return from_data(data, kinds)
    except ConfigError as error:
        raise ConfigError([placed(problem, places) for problem in error.problems]) from None


def from_data(data: dict[str, Any], kinds: Kinds) -> Config:
    """A checked Config from parsed TOML. Raises ConfigError."""
    problems: list[str] = []
    config = convert(data, Config, "", problems, kinds)
    if problems:
        raise ConfigError(problems)
    return config


def read(path: Path, way_out: str) -> dict[str, Any]:
    """A file's TOML. Raises ConfigError."""
    try:
        text = path.read_text()
        if text.startswith(BYTE_ORDER_MARK):
            raise ConfigError([f"{path}: begins with a byte order mark, which TOML has not; save it without one"])
        return tomllib.loads(text)
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}; {way_out}"]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: not valid TOML: {error}"]) from None


def merged(data: dict[str, Any], path: Path) -> tuple[dict[str, Any], Places]:
    """The data with what it includes, and where sections of other files stand there. Raises ConfigError."""
    patterns = data.get(INCLUDE, [])
    if not isinstance(patterns, list) or not all(isinstance(p, str) and p for p in patterns):
        raise ConfigError([f'{INCLUDE}: write a list of files, e.g. include = ["policies/*.toml"]'])
    result: dict[str, Any] = {key: value for key, value in data.items() if key != INCLUDE}
    places: Places = {}
    for file in included(patterns, path.parent):
        for name, tables in read(file, "correct include").items():
            if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
                raise ConfigError([f"{file}: {name}: an included file has arrays of tables alone, such as [[policy]]"])
            whole = list(result.get(name, [])) if isinstance(result.get(name, []), list) else []
            places |= {(name, len(whole) + i): (file, i) for i in range(len(tables))}
            result[name] = whole + tables
    return result, places


def included(patterns: list[str], directory: Path) -> list[Path]:
    """The files; a name without * must be there. Raises ConfigError."""
    files: list[Path] = []
    for pattern in patterns:
        place = Path(pattern) if Path(pattern).is_absolute() else directory / pattern
        found = sorted(place.parent.glob(place.name)) if "*" in place.name else [place]
        files += [file for file in found if file not in files]
    return files


def placed(problem: str, places: Places) -> str:
    """A mistake with the name of the included file that has it."""
    match = PLACE.match(problem)
    place = places.get((match[1], int(match[2]))) if match else None
    if match is None or place is None:
        return problem
    file, number = place
    return f"{file}: {match[1]}[{number}]{problem[match.end() :]}"
