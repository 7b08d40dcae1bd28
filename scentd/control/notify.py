"""sd_notify(3): tell systemd that we are ready, alive, reloading or stopping."""

from __future__ import annotations

import os
import socket
import time


def notify(*lines: str) -> bool:
    """Send lines such as "READY=1"; False if no service manager listens, which is no error."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as end:
        try:
            end.sendto("\n".join(lines).encode(), address)
        except OSError:
            return False
    return True


def reloading() -> bool:
    return notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def watchdog_seconds() -> float | None:
    """Half of WatchdogSec, the longest pause between two messages to systemd; None without a watchdog."""
    value = os.environ.get("WATCHDOG_USEC", "")
    return int(value) / 2e6 if value.isdigit() and int(value) else None
