"""One round of probes: an ICMP echo or a TCP connection to each target, all at once, and how long each took.

They are ordinary packets of this host: the stamper scents those to peers. A reply is known by eight random bytes that
only its target has seen, so nobody off the path can forge one.
"""

from __future__ import annotations

import errno
import os
import secrets
import selectors
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from struct import Struct
from typing import NamedTuple

from scentd.collect.source import CollectError
from scentd.prefix import Address
from scentd.wire.ip import checksum

ECHO = Struct("!BBHHH")  # RFC 792, RFC 4443: type, code, checksum, identifier, sequence number
REQUEST = {4: 8, 6: 128}
REPLY = {4: 0, 6: 129}
PROTOCOL = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
NONCE = 8  # bytes
OUR_OWN = (errno.EPERM, errno.EACCES, errno.EADDRNOTAVAIL)  # say nothing of the path


class Target(NamedTuple):
    """`port` 0: ICMP echo; else a TCP connection, made and closed."""

    address: Address
    port: int = 0


class Round:
    """Probes each target once."""

    def __init__(self, targets: Sequence[Target], sources: Mapping[int, str]) -> None:
        """`sources`: the address that probes come from, by IP version; without one the kernel chooses."""
        self.trips: dict[Target, float] = {}  # seconds, of those that answered
        self.unreachable = 0  # this host or a router said so
        self.foreign = 0  # replies that are not to ours
        self._targets = targets
        self._sources = sources
        self._began: dict[Target, float] = {}  # CLOCK_MONOTONIC
        self._selector = selectors.DefaultSelector()
        self._open: list[socket.socket] = []

    def run(self, timeout: float) -> None:
        """Probe, and wait `timeout` seconds at most. Raises CollectError for what is this host's fault."""
        try:
            for version in sorted({t.address.version for t in self._targets if not t.port}):
                self._send_echoes(version)
            for target in self._targets:
                if target.port:
                    self._connect(target)
            end = time.monotonic() + timeout
            while self._waits() and (left := end - time.monotonic()) > 0:
                for key, _ in self._selector.select(left):
                    key.data()
        finally:
            self._selector.close()
            for sock in self._open:
                sock.close()

    def _waits(self) -> bool:
        return len(self.trips) + self.unreachable < len(self._targets)

    # -- ICMP --------------------------------------------------------------

    def _send_echoes(self, version: int) -> None:
        targets = [t for t in self._targets if not t.port and t.address.version == version]
        sock, raw = echo_socket(version)
        waiting = {secrets.token_bytes(NONCE): target for target in targets}
        self._watch(sock, version, selectors.EVENT_READ, lambda: self._take_replies(sock, raw, version, waiting))
        identifier = secrets.randbits(16)
        for number, (nonce, target) in enumerate(waiting.items()):
            self._began[target] = time.monotonic()
            try:
                sock.sendto(request(version, identifier, number, nonce), (str(target.address), 0))
            except OSError as error:
                self._fail(target, error.errno or 0)

    def _take_replies(self, sock: socket.socket, raw: bool, version: int, waiting: dict[bytes, Target]) -> None:
        while True:
            try:
                message = sock.recv(2048)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error about one of ours; it does not say which, the timeout does
                continue
            now = time.monotonic()
            target = waiting.pop(nonce_of(message, version, with_header=raw and version == 4), None)
            if target is not None:
                self.trips[target] = now - self._began[target]
            else:
                self.foreign += not raw  # a raw socket sees the replies to every program of this host

    # -- TCP ---------------------------------------------------------------

    def _connect(self, target: Target) -> None:
        version = target.address.version
        sock = opened(version, socket.SOCK_STREAM, 0)
        self._watch(sock, version, selectors.EVENT_WRITE, lambda: self._connected(sock, target))
        self._began[target] = time.monotonic()
        code = sock.connect_ex((str(target.address), target.port))
        if code != errno.EINPROGRESS:
            self._connected(sock, target, code)

    def _connected(self, sock: socket.socket, target: Target, code: int | None = None) -> None:
        now = time.monotonic()
        if code is None:
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._selector.unregister(sock)
        if code in (0, errno.ECONNREFUSED):  # a refusal has come all the way, too
            self.trips[target] = now - self._began[target]
        else:
            self._fail(target, code)

    # -- both --------------------------------------------------------------

    def _watch(self, sock: socket.socket, version: int, events: int, call: Callable[[], None]) -> None:
        self._open.append(sock)
        self._selector.register(sock, events, call)
        source = self._sources.get(version)
        if source is not None:
            try:
                sock.bind((source, 0))
            except OSError as error:
                raise CollectError(f"probe: {source}: {error.strerror}; correct `source_address`") from None

    def _fail(self, target: Target, code: int) -> None:
        if code in OUR_OWN:
            raise CollectError(f"probe: {target.address}: {os.strerror(code)}; look at this host's firewall")
        self.unreachable += 1


def opened(version: int, kind: int, protocol: int) -> socket.socket:
    """A socket that does not block. Raises PermissionError and CollectError."""
    try:
        return socket.socket(FAMILY[version], kind | socket.SOCK_NONBLOCK, protocol)
    except PermissionError:
        raise
    except OSError as error:
        raise CollectError(f"probe: IPv{version}: {error.strerror}; probe over the other, or fewer targets") from None


def echo_socket(version: int) -> tuple[socket.socket, bool]:
    """(a socket for echoes, whether it is raw). Raises CollectError.

    The kind for everybody comes first; net.ipv4.ping_group_range says whose it is.
    """
    for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW):
        try:
            return opened(version, kind, PROTOCOL[version]), kind == socket.SOCK_RAW
        except PermissionError:
            continue
    raise CollectError("probe: ICMP is not permitted; allow CAP_NET_RAW, or name TCP ports of the targets")


def request(version: int, identifier: int, number: int, nonce: bytes) -> bytes:
    message = ECHO.pack(REQUEST[version], 0, 0, identifier, number) + nonce
    if version == 4:  # for IPv6 the kernel does it: the checksum is over the addresses, too
        message = message[:2] + checksum(message).to_bytes(2, "big") + message[4:]
    return message


def nonce_of(message: bytes, version: int, with_header: bool) -> bytes:
    """The random bytes of an echo reply; b"" for any other message."""
    if with_header:
        message = message[4 * (message[0] & 15) :] if message else b""
    if len(message) < ECHO.size + NONCE or message[0] != REPLY[version]:
        return b""
    return message[ECHO.size : ECHO.size + NONCE]
