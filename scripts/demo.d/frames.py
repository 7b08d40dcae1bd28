"""Packets as an attacker on the bridge sees, changes and sends them."""

from __future__ import annotations

import os
import socket
import struct
import time
from ipaddress import ip_address

from application import ethernet, send_datagrams
from lab import BRIDGE, INTERFACE, Host, Lab
from story import DemoError

from scentd.wire import ip, keys, layout, tag
from scentd.wire.carrier import carrier_of

ETH_P_ALL = 3
SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC = 263, 1, 1
FRAME_MAX = 2048
PACE = 32  # frames, then a pause: no queue on the way may overflow, each one counts
PACE_SECONDS = 0.001


def tap(lab: Lab) -> socket.socket:
    """A socket that gets every frame on the bridge."""

    def opened() -> socket.socket:
        end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        end.bind((BRIDGE, ETH_P_ALL))
        member = struct.pack("=iHH8s", socket.if_nametoindex(BRIDGE), PACKET_MR_PROMISC, 0, b"")
        end.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, member)
        return end

    return lab.inside(lab.switch, opened)


def catch(lab: Lab, family: int, payload: bytes, seconds: float = 3.0) -> bytes:
    """The scented packet on the bridge in which the tenant sends `payload` now."""
    with tap(lab) as end:
        send_datagrams(lab, family, payload)
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            end.settimeout(left)
            try:
                frame = end.recv(FRAME_MAX)
            except TimeoutError:
                break
            if frame.endswith(payload) and ip.parse(frame[14:]).scent_at:
                return finished(frame[14:])
    raise DemoError(f"no scented packet with {payload!r} was seen on {BRIDGE} within {seconds:g} s")


def finished(packet: bytes) -> bytes:
    """With its UDP checksum, as on a wire.

    There the sender's network card has filled it in. On a veth nobody need do so: the receiver believes the sender's
    kernel, but not an attacker's copy.
    """
    found = ip.parse(packet)
    datagram = bytearray(packet[found.transport_at :])
    datagram[6:8] = b"\0\0"
    pseudo = found.source + found.destination + struct.pack("!II", len(datagram), socket.IPPROTO_UDP)
    datagram[6:8] = (ip.checksum(pseudo + datagram + bytes(len(datagram) % 2)) or 0xFFFF).to_bytes(2, "big")
    return packet[: found.transport_at] + bytes(datagram)


class Injector:
    """Sends IP packets as frames from the attacker's own interface, whatever their source address says."""

    def __init__(self, lab: Lab) -> None:
        def opened() -> socket.socket:
            end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            end.bind((INTERFACE, 0))
            return end

        self._header = {f: ethernet(lab.service.mac, lab.attacker.mac, f) for f in (4, 6)}
        self._end = lab.inside(lab.attacker, opened)
        self._sent = 0

    def __enter__(self) -> Injector:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()

    def send(self, packet: bytes, times: int = 1) -> None:
        frame = self._header[packet[0] >> 4] + packet
        for _ in range(times):
            self._end.send(frame)
            self._sent += 1
            if self._sent % PACE == 0:
                time.sleep(PACE_SECONDS)


def epoch(packet: bytes) -> int:
    at = ip.parse(packet).scent_at + layout.SCENT_EPOCH_AT
    return int.from_bytes(packet[at : at + 4], "big")


def flipped(packet: bytes, position: int, mask: int = 0xFF) -> bytes:
    """With one byte of its scent changed; the IPv4 header checksum is right again."""
    made = bytearray(packet)
    made[ip.parse(packet).scent_at + position] ^= mask
    return with_checksum(made)


def from_source(packet: bytes, host: Host) -> bytes:
    """The same packet from another address, with right checksums: a UDP checksum must not be what refuses it."""
    found = ip.parse(packet)
    start = 12 if found.version == 4 else 8
    new = ip_address(host.address(found.version)).packed
    made = bytearray(packet)
    made[start : start + len(new)] = new
    at = found.transport_at + 6
    old_sum = int.from_bytes(packet[at : at + 2], "big")
    # RFC 1624: what the covered words lose, the sum gains.
    total = (0xFFFF - old_sum) - ip.word_sum(found.source) + ip.word_sum(new)
    made[at : at + 2] = (0xFFFF - total % 0xFFFF or 0xFFFF).to_bytes(2, "big")
    return with_checksum(made)


def with_checksum(packet: bytearray) -> bytes:
    if packet[0] >> 4 == 4:
        end = (packet[0] & 15) * 4
        packet[10:12] = b"\0\0"
        packet[10:12] = ip.checksum(bytes(packet[:end])).to_bytes(2, "big")
    return bytes(packet)


def forged(packet: bytes, host: Host, service_key: str) -> bytes:
    """A scent in every respect right, but of an identity that the service host has never heard of."""
    fresh = keys.identity(os.urandom(keys.SECRET_LEN))
    service = keys.parse_public(service_key)
    now = int(time.time())
    pair = keys.pair_secret(fresh, service)
    tag_key = keys.direction_keys(pair, fresh.public, service, keys.period_of(now)).tag
    parsed = ip.parse(packet)
    bare = from_source(carrier_of(parsed).remove(packet, parsed), host)
    parsed = ip.parse(bare)
    head = tag.head(layout.FLAG_PORTS, 0, fresh.public.key_id, now, 0, bytes(layout.FRAGMENT_LEN))
    return carrier_of(parsed).insert(bare, parsed, head + tag.compute(tag_key, head, parsed))
