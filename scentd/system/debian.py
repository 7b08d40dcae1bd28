"""Which Debian package brings what scentd needs at run time: for every message that something is missing.

Python packages are not among them. They come with `pip install .` from a checkout, or with a wheel made of one: on PyPI
the name scentd is nobody's, so no advice may name it there.
"""

from __future__ import annotations

PACKAGES = {  # a library or command -> its package
    "libnetfilter_queue.so.1": "libnetfilter-queue1",
    "libnfnetlink.so.0": "libnfnetlink0",
    "libmnl.so.0": "libmnl0",
    "libnftables.so.1": "libnftables1",
    "libbpf.so.1": "libbpf1",
    "iptables": "iptables",
    "ip6tables": "iptables",
    "nsenter": "util-linux",
    "systemd-run": "systemd",
}
REINSTALL = "install scentd anew: /opt/scentd/bin/pip install . in its checkout, or its wheel"


def install(needed: str) -> str:
    """The way out if this library or command is missing."""
    return f"apt-get install {PACKAGES[needed]} (or your distribution's package with {needed})"


def way_out(message: str) -> str:
    """The way out by an error's message, such as that of an import: a library it names, or scentd's own packages."""
    return next((install(name) for name in PACKAGES if name in message), REINSTALL)
