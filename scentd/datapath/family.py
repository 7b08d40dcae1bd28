"""The IP versions of this kernel."""

from __future__ import annotations

from pathlib import Path


def families() -> tuple[int, ...]:
    """4, and 6 unless the kernel runs without IPv6."""
    return (4, 6) if Path("/proc/sys/net/ipv6").exists() else (4,)
