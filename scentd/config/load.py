"""The only reader of the configuration file.

`load(path, kinds)` returns a Config, or raises ConfigError with every mistake of the file at once, each under its path.
The types of sections of a kind come from the tables of kinds. Loading starts nothing.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from scentd.config.schema import Kinds, convert
from scentd.config.sections import Config
from scentd.errors import ConfigError

BYTE_ORDER_MARK = "\ufeff"


def load(path: str | Path, kinds: Kinds) -> Config:
    """Read and check a configuration file. Raises ConfigError with all its mistakes."""
    try:
        text = Path(path).read_text()
        if text.startswith(BYTE_ORDER_MARK):
            raise ConfigError([f"{path}: begins with a byte order mark, which TOML has not; save it without one"])
        data = tomllib.loads(text)
    except OSError as error:
        way_out = "name the file with --config, or begin with $(scentd files scentd.example.toml)"
        raise ConfigError([f"{path}: {error.strerror}; {way_out}"]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: not valid TOML: {error}"]) from None
    return from_data(data, kinds)


def from_data(data: dict[str, Any], kinds: Kinds) -> Config:
    """A checked Config from parsed TOML. Raises ConfigError."""
    problems: list[str] = []
    config = convert(data, Config, "", problems, kinds)
    if problems:
        raise ConfigError(problems)
    return config
