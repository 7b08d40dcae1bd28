"""Beacons: fragments that a quiet network's own packets did not carry in time.

A beacon is a minimal UDP packet to the peer's beacon port. Its scent is made here and given to
the kernel as a socket option, so that beacons need no queue.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from ipaddress import ip_address, ip_network

from scentd.config.sections import Config, Peer, stamped_peers
from scentd.core.packet import stamp
from scentd.core.pairs import Pair
from scentd.model import Outgoing
from scentd.wire import ip, layout
from scentd.wire.carrier import ipv4_option, ipv6_header

log = logging.getLogger(__name__)

NOBODY = "nobody listens there; does scentd run at that end, and verify?"
_IPV6_DSTOPTS = 59  # linux/in6.h
_SO_MARK = 36


def endpoints(peer: Peer) -> list[str]:
    """Addresses for a peer's beacons: the configured endpoints, or else the peer's host addresses."""
    if peer.endpoint:
        return list(peer.endpoint)
    hosts = [ip_network(a) for a in peer.addresses]
    return [str(n.network_address) for n in hosts if n.prefixlen == n.max_prefixlen]


def peers_without_endpoint(config: Config) -> list[Peer]:
    """Peers without an address for beacons."""
    return [p for p in stamped_peers(config) if not endpoints(p)]


class Beacons:
    """Sends beacons; counts the beacons sent and the endpoints that failed."""

    def __init__(self, mark: int) -> None:
        self._mark = mark
        self.sent = 0
        self.failed = 0
        self._warned: dict[tuple[str, str], str] = {}  # peer and address -> the reason that was told last

    def send(self, pair: Pair, outgoing: Outgoing, missing: list[int]) -> None:
        """Send the missing fragments to the first endpoint that can be reached."""
        for address in endpoints(pair.peer):
            try:
                self._send(pair, outgoing, missing, address)
                return
            except OSError as error:
                self.failed += 1
                self._warn(pair, address, str(error))

    def _send(self, pair: Pair, outgoing: Outgoing, missing: list[int], address: str) -> None:
        version = ip_address(address).version
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as end:
            end.setsockopt(socket.SOL_SOCKET, _SO_MARK, self._mark)
            for source in pair.network.beacon_source:
                if ip_address(source).version == version:
                    end.bind((source, 0))
            end.connect((address, layout.BEACON_PORT))
            parsed = self._headers(end, version)
            if not self._is_own(pair, parsed.source):
                source = str(ip_address(parsed.source))
                raise OSError(f"source {source} is not in the network's addresses: set network.beacon_source")
            sender_bound = pair.peer.bind == "sender"
            for index in missing:
                scent = stamp.build_scent(outgoing, parsed, index, sender_bound, layout.FLAG_BEACON)
                if version == 4:
                    end.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, ipv4_option(scent))
                else:
                    end.setsockopt(socket.IPPROTO_IPV6, _IPV6_DSTOPTS, ipv6_header(0, scent))
                end.send(b"")
                self.sent += 1

    @staticmethod
    def _headers(end: socket.socket, version: int) -> ip.Parsed:
        source, destination = end.getsockname(), end.getpeername()
        return ip.Parsed(
            version=version,
            protocol=ip.UDP,
            source=ip_address(source[0]).packed,
            destination=ip_address(destination[0]).packed,
            ports=source[1].to_bytes(2, "big") + destination[1].to_bytes(2, "big"),
        )

    @staticmethod
    def _is_own(pair: Pair, source: bytes) -> bool:
        if not pair.network.addresses or pair.network.has_origin:  # the gateway sends beacons for its tenants
            return True
        address = ip_address(source)
        return any(address in n for n in map(ip_network, pair.network.addresses) if n.version == address.version)

    def _warn(self, pair: Pair, address: str, why: str) -> None:
        key = (pair.peer.name, address)
        if self._warned.get(key) != why:
            self._warned[key] = why
            way_out = NOBODY if why == os.strerror(errno.ECONNREFUSED) else "see peer.endpoint and routes"
            log.warning("no beacons to peer %s at %s: %s; %s", pair.peer.name, address, why, way_out)
