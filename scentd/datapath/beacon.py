"""Beacons: fragments that a quiet network's own packets did not carry in time.

A beacon is a minimal UDP packet to the peer's beacon port. Its scent is made here and given to
the kernel as a socket option, so that beacons need no queue.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import socket
import time
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from struct import pack_into

from scentd.config.sections import Config, Peer, stamped_peers
from scentd.core.packet import stamp
from scentd.core.pairs import Pair
from scentd.errors import HostError
from scentd.model import Outgoing
from scentd.system import rtnetlink
from scentd.wire import ip, layout
from scentd.wire.carrier import ipv4_option, ipv6_header

log = logging.getLogger(__name__)

NOBODY = "nobody listens there; does scentd run at that end, and verify?"
MISSED = 0.001  # how often the beacons of an interval may miss one of the verifiers that share an address
VRF_SECONDS = 10.0  # how long their names are believed: peers without a way are tried in every interval
# No route, no such address here, or (by us, without a number) an address that is not the network's.
NO_WAY = (None, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL)
# linux/xfrm.h: struct xfrm_userpolicy_info, whose zeros mean "allow, without a transformation".
_POLICY_SIZE, _POLICY_FAMILY_AT, _POLICY_DIRECTION_AT, _POLICY_OUT = 168, 40, 160, 1
_XFRM_POLICY = {socket.AF_INET: (socket.IPPROTO_IP, 17), socket.AF_INET6: (socket.IPPROTO_IPV6, 35)}
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
    return [p for p in stamped_peers(config) if not p.verifier_endpoint and not endpoints(p)]


def flows_to_reach(verifiers: int) -> int:
    """The number of flows of which each of so many verifiers behind one address gets one, but for once in a thousand.

    Routers choose a verifier for each flow by a hash: n flows miss one of N with a probability of (1 - 1/N)^n, and any
    of them with N times that at most.
    """
    return 1 if verifiers == 1 else math.ceil(math.log(MISSED / verifiers) / math.log(1 - 1 / verifiers))


def leave_unencrypted(end: socket.socket) -> None:
    """Give the socket an IPsec policy of its own that encrypts nothing.

    IPsec would change the packet to which the tag belongs: in transport mode another protocol is behind the scent.
    """
    policy = bytearray(_POLICY_SIZE)
    pack_into("=H", policy, _POLICY_FAMILY_AT, end.family)
    policy[_POLICY_DIRECTION_AT] = _POLICY_OUT
    try:
        end.setsockopt(*_XFRM_POLICY[end.family], policy)
    except OSError as error:
        if error.errno not in (errno.ENOPROTOOPT, errno.EOPNOTSUPP):  # a kernel without IPsec
            raise


class Beacons:
    """Sends beacons; counts the beacons sent and the endpoints that failed."""

    def __init__(self, mark: int) -> None:
        self._mark = mark
        self.sent = 0
        self.failed = 0
        self._vrfs: list[str] = []
        self._look_again_at = 0.0  # monotonic
        self._warned: dict[tuple[str, str], str] = {}  # peer and address -> the reason that was told last

    def send(self, pair: Pair, outgoing: Outgoing, missing: list[int]) -> None:
        """Send the missing fragments to every verifier of the peer: to the address that each one has, or else to the
        first endpoint that can be reached, in so many flows that each gets them.
        """
        for address in pair.peer.verifier_endpoint:
            self._send_to_first(pair, outgoing, missing, [address])
        if not pair.peer.verifier_endpoint:
            self._send_to_first(pair, outgoing, missing, endpoints(pair.peer))

    def _send_to_first(self, pair: Pair, outgoing: Outgoing, missing: list[int], addresses: list[str]) -> None:
        """Send to the first of the addresses that can be reached."""
        for address in addresses:
            error = self._send_by_any_way(pair, outgoing, missing, address)
            if error is None:
                return
            self.failed += 1
            self._warn(pair, address, str(error))

    def _send_by_any_way(
        self, pair: Pair, outgoing: Outgoing, missing: list[int], address: str
    ) -> OSError | HostError | None:
        """Send by the host's routes or, if these have no way from an address of the network, by a VRF's.

        Return None, or why the host's routes have none.
        """
        reason: OSError | HostError | None = None
        try:
            for device in self._ways():
                try:
                    self._send_flows(pair, outgoing, missing, address, device)
                    return None
                except OSError as error:
                    reason = reason or error
                    if error.errno not in NO_WAY:
                        break
        except HostError as error:
            reason = reason or error
        return reason

    def _ways(self) -> Iterator[str]:
        """The host's own routes, then each VRF by its device. Raises HostError."""
        yield ""
        now = time.monotonic()
        if now >= self._look_again_at:
            self._look_again_at, self._vrfs = now + VRF_SECONDS, rtnetlink.names_of_kind("vrf")
        yield from self._vrfs

    def _send_flows(self, pair: Pair, outgoing: Outgoing, missing: list[int], address: str, device: str) -> None:
        """Send to all who share the address. One who refuses beacons does not keep the others from getting theirs."""
        flows = flows_to_reach(pair.peer.verifiers)
        refusals = []
        for _ in range(flows):
            try:
                self._send(pair, outgoing, missing, address, device)
            except ConnectionRefusedError as error:
                refusals.append(error)
        if len(refusals) == flows:
            raise refusals[0]

    def _send(self, pair: Pair, outgoing: Outgoing, missing: list[int], address: str, device: str) -> None:
        """Send one flow: the kernel draws its source port, and so its IPv6 flow label."""
        version = ip_address(address).version
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as end:
            end.setsockopt(socket.SOL_SOCKET, _SO_MARK, self._mark)
            leave_unencrypted(end)
            if device:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode() + b"\0")
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
