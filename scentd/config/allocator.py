"""The [allocator] section: what holds for all policies and resources."""

from __future__ import annotations

from scentd.config.schema import Table, check_prefixes


class AllocatorSettings(Table):
    dry_run: bool = False  # all policies only say what they would do
    protected: list[str] = []  # addresses and prefixes that no quarantine may cut off

    def mistakes(self, path: str) -> list[str]:
        return check_prefixes(self.protected, f"{path}.protected")
