"""Reads files of /proc (proc(5)); an error names the way out."""

from __future__ import annotations

from pathlib import Path

from scentd.collect.source import CollectError


def read_proc(name: str) -> str:
    """Raises CollectError."""
    try:
        return Path("/proc", name).read_text()
    except OSError as error:
        raise CollectError(f"/proc/{name}: {error.strerror}; is /proc mounted (unit: ProcSubset=all)?") from None
