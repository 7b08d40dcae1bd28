"""For the tests of the offload at the edges: hosts with the offload, switches of interfaces, totals of counters."""

from __future__ import annotations

import array
import fcntl
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from compiled import bpffs
from hosts import Node, acquainted, answered, pair, peer_of, start, until
from topology import Host

HEADERS = {4: 28, 6: 48}  # IP and UDP
OVERHEAD = {4: 36, 6: 40}
DISCOVER = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}
DONT, DO = 0, 2
SIOCETHTOOL = 0x8946
# ETHTOOL_STXCSUM, _SSG, _STSO, _SGSO, _SGRO: what `ethtool -K` switches, for a machine that does not have it.
SWITCHES = {"tx": 0x17, "sg": 0x19, "tso": 0x1F, "gso": 0x24, "gro": 0x2C}

# A node's program as on a kernel without tcx links.
CLSACT_ONLY = (
    "-c",
    """
import functools, sys
from scentd.datapath.offload import attach
attach.Attacher = functools.partial(attach.Attacher, force="clsact")
from scentd.cli import main
sys.exit(main())
""",
)


def offloaded(bpf: Path, *nodes: Node) -> None:
    """With the offload, and one worker: what it reports is in the order of its packets."""
    for node in nodes:
        node.pin_dir = bpf / node.name
        node.sections["datapath"] = {**node.sections.get("datapath", {}), "workers": 1}


def in_place(*nodes: Node) -> None:
    """Wait until rules and programs are there: a node that issues nothing answers before that."""
    for node in nodes:
        until(lambda node=node: "SCENTD-IN" in node.host.out("ip6tables", "-t", "raw", "-S"), f"{node.name}'s rules")
        assert node.status()["datapath"] == ("nfqueue+ebpf" if node.pin_dir else "nfqueue")


def queueing(node: Node) -> list[str]:
    """What leads packets of the host's own to the queue."""
    lines = (node.host.out(p, "-w", "-t", "security", "-S") for p in ("iptables", "ip6tables"))
    return [
        line for text in lines for line in text.splitlines() if line.startswith("-A OUTPUT") or "SCENTD-OUT" in line
    ]


@contextmanager
def offloaded_pair(tag: str, directory: Path, **more: Any) -> Iterator[tuple[Node, Node]]:
    """hosts.pair() with the offload at both ends."""
    with bpffs(directory / "bpf") as bpf, pair(tag, directory, **more) as (a, b):
        offloaded(bpf, a, b)
        yield a, b


def strict(node: Node, **more: Any) -> dict[str, Any]:
    """The [[peer]] entry of somebody of whom nothing unscented is taken."""
    return peer_of(node, absent="drop", **more)


def switch(host: Host, interface: str, **on: bool) -> None:
    """As `ethtool -K interface tx off gso off`."""
    with host.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as end:
        for name, value in on.items():
            command = array.array("I", (SWITCHES[name], value))
            fcntl.ioctl(end, SIOCETHTOOL, struct.pack("16sQ16x", interface.encode(), command.buffer_info()[0]))


def is_scented(packet: bytes) -> bool:
    """Behind a plain IP header."""
    return packet[20:22] == b"\x9e\x24" if packet[0] >> 4 == 4 else packet[42:44] == b"\x1e\x22"


def totals(node: Node) -> dict[str, int]:
    """Counters of all kinds in one flat dictionary: "stamped", "unstamped:too-big", "treated:absent:pass" ..."""
    status = node.status()
    flat = {name: status[name] for name in ("stamped", "accepted", "absent")}
    for section in ("unstamped", "rejected", "treated", "other"):
        flat |= {f"{section}:{name}": count for name, count in status[section].items()}
    return flat


def grown(node: Node, before: dict[str, int]) -> dict[str, int]:
    """What has changed since then."""
    now = totals(node)
    return {name: count - before.get(name, 0) for name, count in now.items() if count != before.get(name, 0)}


def settled(node: Node, before: dict[str, int], want: dict[str, int]) -> None:
    """Wait until exactly this has been counted, and see that nothing comes after it: workers report once a second."""
    with suppress(AssertionError):
        until(lambda: grown(node, before) == want, "")
        end = time.monotonic() + 1.2
        until(lambda: time.monotonic() > end, "")
    assert grown(node, before) == want, f"{node.name} counts {grown(node, before)}, not {want}"


@contextmanager
def strict_ends(tag: str, directory: Path, offload: bool) -> Iterator[tuple[Node, Node]]:
    """hosts.pair(), running: each the other's strict peer, and acquainted; with the offload or the queue alone."""
    with ExitStack() as stack:
        a, b = stack.enter_context(pair(tag, directory))
        if offload:
            offloaded(stack.enter_context(bpffs(directory / "bpf")), a, b)
        for node, other in ((a, b), (b, a)):
            node.peers = [strict(other, rejected="drop")]
        start(a, b)
        in_place(a, b)
        acquainted(b, a)
        acquainted(a, b)
        yield a, b


def reached(one: Node, other: Node) -> list[bool]:
    """Whether a datagram arrives, by IP version."""
    arrived = []
    for version in (4, 6):
        with one.socket(version) as sender, other.socket(version) as receiver:
            arrived.append(answered(sender, receiver, seconds=0.5))
    return arrived
