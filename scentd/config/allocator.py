"""The [allocator] section: what holds for all policies and resources."""

from __future__ import annotations

from scentd.config.schema import Table, check_positive, check_prefixes
from scentd.config.units import Bytes, Seconds

HISTORY_MIN = 1e6  # bytes


class AllocatorSettings(Table):
    dry_run: bool = False  # all policies only say what they would do
    history: str = "history.db"  # of decisions and of what policies saw; in daemon.state_dir unless it is a whole path
    history_size: Bytes = 64e6
    history_age: Seconds = 30 * 86400.0
    protected: list[str] = []  # addresses and prefixes that no quarantine may cut off

    def mistakes(self, path: str) -> list[str]:
        problems = check_prefixes(self.protected, f"{path}.protected")
        if self.history_size < HISTORY_MIN:
            problems.append(f"{path}.history_size: is below 1MB, which holds next to nothing; write more")
        return problems + check_positive(self, path, "history_size", "history_age")
