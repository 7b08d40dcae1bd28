"""Checks of `scentd doctor` that only look at the host and change nothing.

The functions check_...() judge. Some get the host's values as arguments, so that tests can try them for any host.
"""

from __future__ import annotations

import configparser
import ctypes
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from scentd.system import debian

Ok = Literal["yes", "no", "warning"]

# linux/capability.h; what the unit file grants, by its use
CAPABILITIES = {12: "CAP_NET_ADMIN", 13: "CAP_NET_RAW"}
SOMETIMES = {0: "CAP_CHOWN", 5: "CAP_KILL", 6: "CAP_SETGID", 7: "CAP_SETUID"}
KERNEL_MIN, KERNEL_TESTED = (5, 10), (6, 1)  # Debian 11's, which Python 3.11 rules out, and Debian 12's
FREE_MIN, FREE_COMFORTABLE = 16 << 20, 256 << 20  # bytes: epochs are tiny, the history grows to its bound
TIME_SERVERS = ("/etc/systemd/timesyncd.conf", "/etc/chrony/chrony.conf", "/etc/ntpsec/ntp.conf", "/etc/ntp.conf")
TIME_ERROR, STA_UNSYNC = 5, 0x40  # adjtimex(2), linux/timex.h
MAX_ERROR = 5.0  # seconds; half of verify.max_future


@dataclass(frozen=True, slots=True)
class Check:
    """`found` is the state of the host, `way_out` the remedy; `way_out` is empty if ok is "yes"."""

    name: str
    ok: Ok
    found: str
    way_out: str = ""


class Timex(ctypes.Structure):
    """The head of struct timex; the kernel fills 208 bytes on 64 bit."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),  # microseconds
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    ]


def read(path: str) -> str | None:
    """The text of a file of /proc or /sys without its newline; None if it cannot be read."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


# ---- the process and its programs ----


def effective_capabilities() -> int:
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", read("/proc/self/status") or "", re.MULTILINE)
    return int(found[1], 16) if found else 0


def check_capabilities(mask: int) -> Check:
    missing = [name for bit, name in CAPABILITIES.items() if not mask >> bit & 1]
    if missing:
        way_out = "run as root, or with the shipped unit file; in a container: --cap-add NET_ADMIN --cap-add NET_RAW"
        return Check("capabilities", "no", f"without {', '.join(missing)}", way_out)
    missing = [name for bit, name in SOMETIMES.items() if not mask >> bit & 1]
    if missing:
        return Check(
            "capabilities",
            "warning",
            f"without {', '.join(missing)}",
            "control_group and policies of kind command need them",
        )
    return Check("capabilities", "yes", ", ".join((CAPABILITIES | SOMETIMES).values()))


def check_kernel(release: str) -> Check:
    found = re.match(r"(\d+)\.(\d+)", release)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if version < KERNEL_MIN:
        return Check("kernel", "no", release, f"at least {dotted(KERNEL_MIN)} is needed")
    if version < KERNEL_TESTED:
        return Check("kernel", "warning", release, f"tested with {dotted(KERNEL_TESTED)} and later")
    return Check("kernel", "yes", release)


def check_python(version: tuple[int, ...]) -> Check:
    if version < (3, 11):
        return Check("Python", "no", dotted(version), "at least 3.11 is needed")
    return Check("Python", "yes", dotted(version))


def requirements() -> list[str]:
    """Lines such as "mmh3>=5", from the installed package or from this checkout."""
    try:
        return [line for line in metadata.requires("scentd") or [] if "extra ==" not in line]
    except metadata.PackageNotFoundError:
        parser = configparser.ConfigParser()
        parser.read(Path(__file__).parent.parent.parent / "setup.cfg")
        return parser.get("options", "install_requires", fallback="").split()


def check_packages(wanted: Sequence[str]) -> Check:
    versions, wrong = [], []
    for line in wanted:
        name, _, least = line.replace(" ", "").partition(">=")
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        versions.append(f"{name} {version}")
        if least and numbers(version) < numbers(least):
            wrong.append(f"{name} {version} is older than {least}")
    if wrong or not wanted:
        return Check("Python packages", "no", "; ".join(wrong) or "the list is missing", debian.REINSTALL)
    return Check("Python packages", "yes", ", ".join(versions))


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:3])


def dotted(version: Iterable[int]) -> str:
    return ".".join(map(str, version))


# ---- the network ----


def check_ipv6() -> Check:
    disabled = read("/proc/sys/net/ipv6/conf/all/disable_ipv6")
    if disabled is None:
        return Check("IPv6", "warning", "the kernel runs without it", "only IPv4 peers can be reached; ipv6.disable=0")
    if disabled != "0":
        return Check("IPv6", "warning", "switched off", "sysctl -w net.ipv6.conf.all.disable_ipv6=0 if peers use it")
    return Check("IPv6", "yes", "enabled")


def needed_addresses() -> list[tuple[str, str]]:
    """(use, address) of this host's resolvers and time servers, and of the session that asks; names are left out."""
    found = [("resolver", a) for a in re.findall(r"(?m)^nameserver\s+(\S+)", read("/etc/resolv.conf") or "")]
    for path in TIME_SERVERS:
        lines = re.findall(r"(?m)^\s*(?:server|pool|peer|NTP=|FallbackNTP=)\s*(.+)$", read(path) or "")
        found += [("time server", word) for line in lines for word in line.split()]
    found += [("this session", word) for word in os.environ.get("SSH_CONNECTION", "").split()[:1]]
    return [(use, address) for use, address in dict.fromkeys(found) if is_address(address)]


def is_address(text: str) -> bool:
    try:
        ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return "%" not in text


def check_mixture() -> Check:
    """Look for rules of both iptables back ends: each lists only its own, packets meet both."""
    legacy = [t for v in ("", "6") for t in (read(f"/proc/net/ip{v}_tables_names") or "").split()]
    try:
        done = subprocess.run(["iptables", "--version"], capture_output=True, text=True, timeout=10, check=False)
    except FileNotFoundError:
        return Check("iptables back end", "no", "iptables not found", debian.install("iptables"))
    nft = "nf_tables" in done.stdout
    others = sorted(set(legacy)) if nft else iptables_nft_tables()
    mine, other = ("nft", "legacy") if nft else ("legacy", "nft")
    if others:
        way_out = f"move all rules to one back end: update-alternatives --config iptables, then iptables-{other} -F"
        return Check("iptables back end", "warning", f"{mine}, and {other} has tables: {', '.join(others)}", way_out)
    return Check("iptables back end", "yes", f"{mine} alone")


def iptables_nft_tables() -> list[str]:
    from scentd.system.nft import Nftables

    with closing(Nftables()) as tables:
        found = [name for name in ("mangle", "filter", "nat") if any(tables.table(name, f) for f in ("ip", "ip6"))]
    return sorted(found)


def check_conntrack(count: str | None) -> Check:
    """Conntrack reassembles IPv6 before our queue; stamped datagrams in fragments are lost then (wire/README.md)."""
    if count is None or count == "0":
        return Check("connection tracking", "yes", "tracks nothing")
    way_out = "IPv6 datagrams in fragments come unstamped: choose absent_ipv6_fragments for each [[peer]]"
    return Check("connection tracking", "warning", f"{count} connections", way_out)


# ---- time and disk ----


def clock() -> tuple[int, int, float]:
    """State and status of adjtimex(2), largest error in seconds. Changes nothing: modes is 0."""
    timex = Timex()
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    return state, timex.status, timex.maxerror / 1e6


def check_clock(state: int, status: int, error: float) -> Check:
    way_out = "run systemd-timesyncd, chrony or ntpd: epochs are Unix time, both ends' clocks must agree to seconds"
    if state < 0:
        return Check("clock", "warning", "adjtimex is not allowed here", way_out)
    if state == TIME_ERROR or status & STA_UNSYNC:
        return Check("clock", "warning", "not synchronised, as far as the kernel knows", way_out)
    if error > MAX_ERROR:
        return Check("clock", "warning", f"synchronised, but may be off by {error:.1f} s", way_out)
    return Check("clock", "yes", f"synchronised, at most {error * 1000:.0f} ms off")


def check_state_dir(path: Path) -> Check:
    """Whether this process can write there: it writes a file. It does not make a missing directory."""
    parent = existing_parent(path)
    try:
        with tempfile.TemporaryFile(dir=parent) as file:
            file.write(b"scentd")
    except OSError as error:
        way_out = f"make {path} writable (unit: StateDirectory=scentd) or choose another daemon.state_dir"
        return Check("state directory", "no", f"{parent}: {error.strerror}", way_out)
    if parent != path:
        return Check("state directory", "yes", f"{path} will be made at the first start")
    return Check("state directory", "yes", f"{path} is writable")


def existing_parent(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())


def check_space(path: Path) -> Check:
    free = shutil.disk_usage(existing_parent(path)).free
    found, way_out = (
        f"{free >> 20} MiB free",
        f"make room below {path}: epochs must be kept, decisions are logged there",
    )
    ok: Ok = "no" if free < FREE_MIN else "warning" if free < FREE_COMFORTABLE else "yes"
    return Check("disk space", ok, found, "" if ok == "yes" else way_out)


def check_jit(setting: str | None) -> Check:
    """Without the JIT the kernel interprets the offload's programs. The queue does not need it."""
    if setting == "0":
        return Check("BPF JIT", "warning", "off: the offload is slow", "sysctl net.core.bpf_jit_enable=1")
    # Only the first network namespace has the setting.
    return Check("BPF JIT", "yes", "on" if setting else "cannot be seen from this network namespace")
