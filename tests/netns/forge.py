"""Scents made by hand: the attacker's workbench, and a sender that needs no daemon.

The scent goes into the packet as a socket option of an ordinary socket, so that addresses, ports and checksums
are the kernel's.
"""

from __future__ import annotations

import socket
from dataclasses import replace
from ipaddress import ip_address

from hosts import Node

from scentd.core.packet import stamp
from scentd.core.profile.issue import IssuedPair, Issuer, metric_slots
from scentd.model import Outgoing, Statement
from scentd.wire import ip, keys, layout
from scentd.wire.carrier import ipv6_header

IP_OPTIONS, IPV6_DSTOPTS = 4, 59
QUIET = Statement(5, 0.5, {"cpu": 0.5}, frozenset())


def issued(sender: keys.Identity, receiver: Node, epoch: int, statement: Statement = QUIET) -> Outgoing:
    """What a stamper of `sender` would put on packets to the receiver in an epoch."""
    pair = IssuedPair("", receiver.name, sender, receiver.identity.public)
    return Issuer(sender, [pair], metric_slots({})).issue(statement, epoch)[0]


def connected(node: Node, to: tuple[str, int], kind: int = socket.SOCK_DGRAM, source: str = "") -> socket.socket:
    version = ip_address(to[0]).version
    made = node.socket(version, kind, bind=False)
    made.bind((source or node.address(version), 0))
    if kind == socket.SOCK_DGRAM:
        made.connect(to)
    return made


def scent(end: socket.socket, to: tuple[str, int], outgoing: Outgoing, index: int = 0, **more) -> bytes:
    """The 34 bytes for the socket's packets."""
    protocol = ip.TCP if end.type == socket.SOCK_STREAM else ip.UDP
    source, port = end.getsockname()[:2]
    found = ip.Parsed(
        version=ip_address(source).version,
        protocol=protocol,
        source=ip_address(source).packed,
        destination=ip_address(to[0]).packed,
        ports=port.to_bytes(2, "big") + to[1].to_bytes(2, "big"),
    )
    return stamp.build_scent(outgoing, found, index, **more)


def attach(end: socket.socket, made: bytes) -> None:
    """Let the kernel put these bytes, a whole scent or less, into every packet of the socket."""
    if end.family == socket.AF_INET:
        option = bytes((layout.IPV4_OPTION_TYPE, 2 + len(made))) + made
        end.setsockopt(socket.IPPROTO_IP, IP_OPTIONS, option + b"\x01" * (-len(option) % 4))
    elif len(made) == layout.LEN:
        end.setsockopt(socket.IPPROTO_IPV6, IPV6_DSTOPTS, ipv6_header(0, made))
    else:
        header = bytes((0, 4, layout.IPV6_OPTION_TYPE, len(made))) + made
        end.setsockopt(
            socket.IPPROTO_IPV6, IPV6_DSTOPTS, header + bytes((1, 38 - len(header))) + bytes(38 - len(header))
        )


def bent(made: bytes, at: int, value: int) -> bytes:
    return made[:at] + bytes((value,)) + made[at + 1 :]


def at_epoch(outgoing: Outgoing, epoch: int) -> Outgoing:
    """The same keys and fragments under another epoch."""
    return replace(outgoing, epoch=epoch)
