"""Runs a policy's program: no shell, the decision as JSON on its standard input."""

from __future__ import annotations

import logging
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pwd import getpwnam

from scentd.act.actuator import ActuatorKind, Attempt, Tally
from scentd.errors import HostError

log = logging.getLogger(__name__)

OUTPUT_MAX = 4096  # bytes of output kept for the log; the rest is read and thrown away
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


class CommandActuator(ActuatorKind):
    """Runs commands. Counts command_runs and command_failures (a status other than 0, or no end)."""

    def carry_out(self, attempt: Attempt, tally: Tally) -> None:
        """Run the program once: it may not be safe to run it again."""
        do, policy = attempt.oneshot.action, attempt.oneshot.decision.policy
        tally.add("command_runs")
        try:
            status = run(do.argv, attempt.payload, do.timeout, do.user)
        except HostError as error:
            tally.add("command_failures")
            log.error("policy %s: %s", policy, error)
            return
        if status != 0:
            tally.add("command_failures")
            log.error("policy %s: command %s: status %d", policy, do.argv[0], status)


def run(argv: Sequence[str], payload: bytes, timeout: float, user: str) -> int:
    """Run the program to its end as `user` and return its exit status.

    Raises HostError if it cannot be started, or is killed (with its whole process group) after
    `timeout` seconds. If it ends in time, its background processes are left alone.
    """
    deadline = time.monotonic() + timeout
    process = start(argv, payload, user)
    try:
        output, ended = collect(process, deadline)
        if not ended:
            raise HostError(f"command {argv[0]}: killed after {timeout:g} s; give the policy a longer do.timeout")
        status = process.wait()
    finally:
        if process.returncode is None:
            kill_group(process)
        if process.stdout:
            process.stdout.close()
    log.debug("command %s: status %d, output: %s", argv[0], status, output.decode(errors="replace"))
    return status


def start(argv: Sequence[str], payload: bytes, user: str, errors: int = subprocess.STDOUT) -> subprocess.Popen[bytes]:
    """Start the program. Its standard input is a file in memory, so that no write can block while it runs."""
    identity = identity_of(user)
    stdin = os.memfd_create("scentd-decision")
    try:
        os.write(stdin, payload)
        os.lseek(stdin, 0, os.SEEK_SET)
        return subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=ENVIRONMENT,
            cwd="/",
            start_new_session=True,
            **identity,
        )
    except OSError as error:
        raise HostError(f"command {argv[0]}: {error.strerror or error}; check do.argv and do.user") from None
    finally:
        os.close(stdin)


def identity_of(user: str) -> dict:
    """Popen's arguments for the user; none if scentd runs as that user."""
    try:
        entry = getpwnam(user)
    except KeyError:
        raise HostError(f"command: there is no user {user!r}; name another in do.user") from None
    if entry.pw_uid == os.geteuid():
        return {}
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def collect(process: subprocess.Popen[bytes], deadline: float, most: int = OUTPUT_MAX) -> tuple[bytes, bool]:
    """Read the output until the program ends. Return the output's beginning, and whether the end came in time."""
    assert process.stdout is not None
    output = bytearray()
    stdout, ending = process.stdout.fileno(), os.pidfd_open(process.pid)
    os.set_blocking(stdout, False)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            selector.register(ending, selectors.EVENT_READ)
            while (left := deadline - time.monotonic()) > 0:
                ready = {key.fd for key, _ in selector.select(left)}
                if stdout in ready and not drain(stdout, output, most):
                    selector.unregister(stdout)
                if ending in ready:
                    drain(stdout, output, most)
                    return bytes(output), True
        return bytes(output), False
    finally:
        os.close(ending)


def drain(stdout: int, output: bytearray, most: int) -> bool:
    """Read the available output once; keep its beginning. False at the end of the output."""
    try:
        data = os.read(stdout, 65536)
    except BlockingIOError:
        return True
    output += data[: most - len(output)]
    return bool(data)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):  # it ended meanwhile
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
