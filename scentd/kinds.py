"""The tables of kinds that a configuration may name, together, for readers of a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scentd.act.resources import RESOURCES
from scentd.collect import SOURCES
from scentd.config import load
from scentd.config.schema import Kinds
from scentd.config.sections import Config
from scentd.core.allocate.actions import ACTIONS


def kinds() -> Kinds:
    return {
        "source": {kind: source.section for kind, source in SOURCES.items()},
        "resource": {kind: backend.section for kind, backend in RESOURCES.items()},
        "action": {kind: action.section for kind, action in ACTIONS.items()},
    }


def load_config(path: str | Path) -> Config:
    """Read and check a configuration file. Raises ConfigError with all its mistakes."""
    return load.load(path, kinds())


def config_from(data: dict[str, Any]) -> Config:
    """A checked Config from parsed TOML. Raises ConfigError."""
    return load.from_data(data, kinds())
