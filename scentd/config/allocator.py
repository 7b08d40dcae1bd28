"""The [allocator] section: what holds for all policies and resources."""

from __future__ import annotations

from scentd.config.schema import Table


class AllocatorSettings(Table):
    dry_run: bool = False  # all policies only say what they would do
