"""What systemd means to do with our unit, as ExecStopPost= can learn it (systemd.exec(5), systemctl(1))."""

from __future__ import annotations

import os
import subprocess

TIMEOUT = 5.0  # seconds


def why_it_comes_back(unit: str, replaced: int, misconfigured: int) -> str:
    """Why a daemon follows the one that has just ended; "" if none does.

    `replaced` is the exit status of a daemon that makes room, `misconfigured` that of one that need not be restarted.
    A restart that somebody ordered shows only in the job that is queued, one after a failure only in the result. A
    start that fails for the configuration still has its job, and nothing follows it.
    """
    status = os.environ.get("EXIT_STATUS", "")
    if status == str(misconfigured):
        return ""
    job = queued_job(unit)
    if job in ("restart", "start"):
        return f"{unit} is being restarted"
    if job == "stop":
        return ""
    if status == str(replaced):
        return f"{unit} is being replaced"
    if os.environ.get("SERVICE_RESULT", "success") == "success":
        return ""
    return f"{unit} has failed and is restarted"


def queued_job(unit: str) -> str:
    """The kind of job that systemd has for the unit: start, stop, restart ...; "" without one, or without systemd."""
    argv = ["systemctl", "list-jobs", "--plain", "--no-legend", "--no-pager", unit]
    try:
        result = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    rows = [line.split() for line in result.stdout.splitlines()]
    return next((row[2] for row in rows if len(row) >= 4 and row[1] == unit), "")
