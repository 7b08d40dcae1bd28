"""Profiles a second on one core: issuing (score, Bloom, sign, seal) and verifying (open, check, decode)."""

from __future__ import annotations

from typing import Any

ROUNDS = 7


def run(rounds: int, quick: bool) -> dict[str, Any]:
    return {}


def table(result: dict[str, Any]) -> str:
    return ""
