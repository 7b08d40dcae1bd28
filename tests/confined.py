"""Runs a program confined as a systemd unit says, without systemd.

Of the unit's directives these are put on: CapabilityBoundingSet, NoNewPrivileges, SystemCallFilter,
RestrictAddressFamilies, MemoryDenyWriteExecute. The mounts (ProtectSystem= and its like) are not.
The filter is made by libseccomp, which systemd itself uses, from the groups that systemd-analyze lists.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
from pathlib import Path

from pyroute2 import netns

ROOT = Path(__file__).parent.parent
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_SET_MDWE = 24, 38, 65
ALLOW = 0x7FFF0000
COMPARE_NOT_EQUAL, COMPARE_EQUAL = 1, 4
CAPABILITIES = {
    "CAP_CHOWN": 0,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_NET_ADMIN": 12,
    "CAP_NET_RAW": 13,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}


class Argument(ctypes.Structure):
    """struct scmp_arg_cmp of seccomp.h."""

    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def refuse(code: int) -> int:
    return 0x00050000 | code


def allowed_calls(filters: list[str]) -> set[str]:
    """The names that the unit's SystemCallFilter= lines leave, in their order."""
    allowed: set[str] = set()
    for line in filters:
        names = {name for word in line.lstrip("~").split() for name in expand(word)}
        allowed = allowed - names if line.startswith("~") else allowed | names
    return allowed


def expand(word: str) -> set[str]:
    if not word.startswith("@"):
        return {word}
    done = subprocess.run(["systemd-analyze", "syscall-filter", word], capture_output=True, text=True, check=True)
    names = [line.strip() for line in done.stdout.splitlines()[1:] if line.strip() and "#" not in line]
    return {found for name in names for found in expand(name)}


def install_filter(calls: set[str], families: list[str]) -> None:
    """Allow these system calls to this process from now on, and sockets of these families."""
    lib = ctypes.CDLL("libseccomp.so.2")
    lib.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(lib.seccomp_init(ctypes.c_uint32(refuse(errno.EPERM))))
    for name in calls - {"socket"}:
        number = lib.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:
            assert lib.seccomp_rule_add(context, ctypes.c_uint32(ALLOW), number, 0) == 0, name
    number, numbers = lib.seccomp_syscall_resolve_name(b"socket"), {getattr(socket, name) for name in families}
    for family in range(64):
        action = ALLOW if family in numbers else refuse(errno.EAFNOSUPPORT)
        compare = Argument(0, COMPARE_EQUAL, family, 0)
        assert lib.seccomp_rule_add_array(context, ctypes.c_uint32(action), number, 1, ctypes.byref(compare)) == 0
    assert lib.seccomp_load(context) == 0


def confine(unit: dict[str, list[str]], calls: set[str]) -> None:
    """This process, for good."""
    libc = ctypes.CDLL(None, use_errno=True)
    keep = {CAPABILITIES[name] for name in " ".join(unit["CapabilityBoundingSet"]).split()}
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for capability in set(range(last + 1)) - keep:
        assert libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0
    if unit["NoNewPrivileges"] == ["yes"]:
        assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    if unit["MemoryDenyWriteExecute"] == ["yes"]:
        libc.prctl(PR_SET_MDWE, 1, 0, 0, 0)  # since Linux 6.3
    install_filter(calls, " ".join(unit["RestrictAddressFamilies"]).split())


def run(unit: dict[str, list[str]], argv: list[str], namespace: str = "") -> subprocess.CompletedProcess[str]:
    """Run to the end, in a network namespace if one is named; output as text."""
    calls = allowed_calls(unit["SystemCallFilter"])

    def prepare() -> None:
        if namespace:
            netns.setns(namespace)
        confine(unit, calls)

    return subprocess.run(
        argv,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=prepare,
    )
