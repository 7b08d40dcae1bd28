"""The table of kinds of resource: one line a kind."""

from __future__ import annotations

from scentd.act.resources.backend import BackendType

RESOURCES: dict[str, BackendType] = {}
