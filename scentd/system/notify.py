"""sd_notify(3): tell systemd that we are ready, alive, reloading or stopping, and give it descriptors to keep."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence

FIRST_FD = 3  # SD_LISTEN_FDS_START


def notify(*lines: str, fds: Sequence[int] = ()) -> bool:
    """Send lines such as "READY=1"; False if no service manager listens, which is no error."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as end:
        try:
            end.connect(address)
            socket.send_fds(end, ["\n".join(lines).encode()], list(fds))
        except OSError:
            return False
    return True


def store(name: str, fd: int) -> bool:
    """Let systemd keep a duplicate over this process's end, also if its other end hangs up (FDPOLL=0)."""
    return notify("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", fds=[fd])


def remove_stored(name: str) -> bool:
    return notify("FDSTOREREMOVE=1", f"FDNAME={name}")


def take_stored() -> list[tuple[str, int]]:
    """(name, descriptor) of what systemd kept for this process. A second call returns nothing."""
    mine = os.environ.pop("LISTEN_PID", "") == str(os.getpid())
    count, names = os.environ.pop("LISTEN_FDS", "0"), os.environ.pop("LISTEN_FDNAMES", "")
    if not mine or not count.isdigit():
        return []
    fds = list(range(FIRST_FD, FIRST_FD + int(count)))
    for fd in fds:
        os.set_inheritable(fd, False)
    return list(zip(names.split(":"), fds, strict=False))


def reloading() -> bool:
    return notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def watchdog_seconds() -> float | None:
    """Half of WatchdogSec, the longest pause between two messages to systemd; None without a watchdog."""
    value = os.environ.get("WATCHDOG_USEC", "")
    return int(value) / 2e6 if value.isdigit() and int(value) else None
