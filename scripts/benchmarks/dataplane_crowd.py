"""The offload's programs with the maps of a host that has N peers, and packets of these peers.

Each peer has an IPv4 and an IPv6 address. Maps are filled with what the daemon would write, and are of the
size that it would choose. Keys are the same for all peers: where they lie is what costs, not what they are.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable

from benchmarks import packets
from benchmarks.lab import ADDRESS, MTU, PORT
from scentd.core.offload import encode
from scentd.core.offload.coverage import Direction
from scentd.core.offload.encode import PAIR
from scentd.core.tables import StampPair
from scentd.datapath.offload import offload
from scentd.datapath.offload.bpfmap import RingBuffer
from scentd.datapath.offload.bpfprog import prog_test_run
from scentd.datapath.offload.programs import Programs, with_spare
from scentd.model import Outgoing
from scentd.wire import ip, layout, maps, tag
from scentd.wire.carrier import carrier_of

FAMILIES = (4, 6)
BITS = {4: 32, 6: 128}
SOCKET = {4: socket.AF_INET, 6: socket.AF_INET6}
FIRST = {4: "11.0.0.0", 6: "fd00:204::"}  # the first peer's address
_FIRST = {family: int.from_bytes(socket.inet_pton(SOCKET[family], FIRST[family]), "big") for family in FAMILIES}
OWN = {family: ADDRESS[family]["near"].format(1) for family in FAMILIES}
ETHERNET = {4: bytes(12) + b"\x08\x00", 6: bytes(12) + b"\x86\xdd"}
NOTHING = bytes(12) + b"\x08\x06" + bytes(46)  # ARP: both programs return at once
GROWTH = packets.GROWTH
PAYLOAD = bytes(64)
NETWORK = 1
AGE = 3000  # seconds before now that the first epoch is; under a period, so that all are of two periods
ALL_SEEN = (1 << layout.FRAGMENTS) - 1
HEADER = len(ETHERNET[4])
KEY = bytes(range(16))
TREATMENTS = (
    layout.TREATMENT_DROP << maps.TREATMENTS_REJECTED
    | layout.TREATMENT_DROP << maps.TREATMENTS_ABSENT
    | 1 << maps.TREATMENTS_EXPECTED
)
DRAIN = 1000  # runs between two readings of the events; their buffer holds more


class Crowd:
    """Both programs and N peers, numbered from 0. A context manager. Raises HostError."""

    def __init__(self, peers: int) -> None:
        self.peers = peers
        self.now = int(time.time())
        self.first = self.now - AGE
        needed = {
            "stamp.prefixes": 2 * peers + 2,
            "stamp.outgoing": peers,
            "verify.prefixes": 4 * peers + 2,
            "verify.identities": peers,
            "verify.receiving": peers,
            "verify.accepted": peers,
            "verify.nodes": min(maps.NODES * peers, offload.NODES_MAX),
        }
        self.programs = Programs(with_spare(needed))
        self._events = RingBuffer(self.programs.events(), lambda _: None)
        self._runs = 0
        self._fill_stamp()
        self._fill_verify()

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self._events.close()
        self.programs.close()

    # -- maps --------------------------------------------------------------

    def _fill_stamp(self) -> None:
        table, numbers = self.programs.maps, range(self.peers)
        own = [(own_key(family), encode.prefix_value(0)) for family in FAMILIES]
        table["stamp.prefixes"].update_many(own)
        for family in FAMILIES:
            head = prefix_head(maps.SCOPE_ROUTE, family)
            table["stamp.prefixes"].update_many(
                (head + address(family, n), maps.PREFIX_VALUE.pack(n, MTU)) for n in numbers
            )
        before, behind = self._outgoing()
        table["stamp.outgoing"].update_many((PAIR.pack(n), before + key_id(n) + behind) for n in numbers)
        example = [key for key, _ in own] + [prefix_head(maps.SCOPE_ROUTE, f) + bytes(16) for f in FAMILIES]
        lengths = encode.lengths(example, encode.STAMP_SCOPES)
        masks = (0,) * maps.MASKS_MAX
        table["stamp.settings"].update(PAIR.pack(0), maps.STAMP_SETTINGS.pack(offload.RUN_NS, 0, 0, *masks, *lengths))

    def _fill_verify(self) -> None:
        table, numbers = self.programs.maps, range(self.peers)
        own = [(own_key(family), encode.prefix_value(NETWORK)) for family in FAMILIES]
        table["verify.prefixes"].update_many(own)
        source = maps.PREFIX_VALUE.pack(0, TREATMENTS)
        for family in FAMILIES:
            head = prefix_head(maps.SCOPE_SOURCE, family)
            table["verify.prefixes"].update_many((head + address(family, n), source) for n in numbers)
            table["verify.prefixes"].update_many(
                (prefix_head(maps.SCOPE_MEMBER + n, family) + address(family, n), maps.PREFIX_VALUE.pack(n, 0))
                for n in numbers
            )
        words = encode.key_words(KEY) * maps.PERIODS
        period = self.now // layout.PERIOD
        table["verify.identities"].update_many(
            (maps.IDENTITY.pack(key_id(n), NETWORK, 0), maps.INCOMING.pack(n, n, 0, period, *words, *words, b"", 0))
            for n in numbers
        )
        self.reset(numbers, self.first, ALL_SEEN)  # packets of that epoch say nothing new
        example = [key for key, _ in own]
        example += [prefix_head(s, f) + bytes(16) for s in (maps.SCOPE_SOURCE, maps.SCOPE_MEMBER) for f in FAMILIES]
        lengths = encode.lengths(example, encode.VERIFY_SCOPES)
        age = encode.nanoseconds(2 * AGE)
        settings = maps.VERIFY_SETTINGS.pack(age, age, age, 1, 0, TREATMENTS, 0, *lengths)
        table["verify.settings"].update(PAIR.pack(0), settings)
        now = time.monotonic_ns()
        clock = maps.CLOCK.pack(time.time_ns() - now, now + offload.LEASE_NS * 10, 0)
        table["verify.clock"].update(PAIR.pack(0), clock)

    def _outgoing(self) -> tuple[bytes, bytes]:
        """A struct scent_outgoing in two parts; the four bytes of the key id are between them."""
        fragments = (bytes(layout.FRAGMENT_LEN),) * layout.FRAGMENTS
        out = Outgoing("", "", self.now, bytes(4), KEY, bytes(layout.FRAGMENTS), fragments, self.now + 10 * AGE)
        _, value = encode.outgoing_entry(StampPair(0, 0, 0), out, time.time() - time.monotonic())
        at = maps.OUTGOING_HEAD_AT + layout.SCENT_KEY_ID_AT
        return value[:at], value[at + 4 :]

    def reset(self, peers: Iterable[int], epoch: int, seen: int) -> None:
        """This is all that is known of these peers."""
        numbers = (0, epoch, 0, self.first, seen, *(0,) * 8)
        value = maps.RECEIVING.pack(*numbers, b"", *(0,) * layout.FRAGMENTS, b"", 4, b"", b"")
        self.programs.maps["verify.receiving"].update_many((PAIR.pack(n), value) for n in peers)

    # -- packets and runs --------------------------------------------------

    def scented(self, family: int, number: int, epoch: int, index: int) -> bytes:
        """A frame from a peer to us with one fragment of an epoch."""
        packet = datagram(family, address_text(family, number), OWN[family])
        found = ip.parse(packet)
        head = tag.head(layout.FLAG_PORTS, 0, key_id(number), epoch, index, bytes(layout.FRAGMENT_LEN))
        return ETHERNET[family] + carrier_of(found).insert(packet, found, head + tag.compute(KEY, head, found))

    def stamp(self, frame: bytes) -> int:
        """Nanoseconds of a run; RuntimeError if the packet was not stamped."""
        return self._run("egress", frame, GROWTH[4 if frame[12] == 8 else 6])

    def verify(self, frame: bytes) -> int:
        """Nanoseconds of a run; RuntimeError if the scent was not taken off."""
        return self._run("ingress", frame, -GROWTH[4 if frame[12] == 8 else 6])

    def idle(self, direction: Direction) -> int:
        """Nanoseconds of a run that looks at nothing: what measuring costs."""
        return self._run(direction, NOTHING, 0)

    def _run(self, direction: Direction, frame: bytes, growth: int) -> int:
        # One run each: a second one would find the packet as the first has left it.
        _, changed, _, took = prog_test_run(self.programs.program(direction, HEADER), frame)
        if len(changed) != len(frame) + growth:
            raise RuntimeError(f"{direction}: {len(frame)} bytes became {len(changed)}, not {len(frame) + growth}")
        self._runs += 1
        if self._runs % DRAIN == 0:
            self._events.consume()
        return took


def prefix_head(scope: int, family: int) -> bytes:
    """A struct scent_prefix of a host, without the address."""
    return maps.PREFIX.pack(scope, family, BITS[family], b"")[: maps.PREFIX_ADDRESS_AT]


def own_key(family: int) -> bytes:
    return prefix_head(maps.SCOPE_LOCAL, family) + socket.inet_pton(SOCKET[family], OWN[family]).ljust(16, b"\0")


def address(family: int, number: int) -> bytes:
    """A peer's, as the maps have it."""
    return (_FIRST[family] + number).to_bytes(BITS[family] // 8, "big").ljust(16, b"\0")


def address_text(family: int, number: int) -> str:
    return socket.inet_ntop(SOCKET[family], address(family, number)[: BITS[family] // 8])


def key_id(number: int) -> bytes:
    return (number + 1).to_bytes(4, "big")


def datagram(family: int, source: str, destination: str) -> bytes:
    build = packets.ipv4 if family == 4 else packets.ipv6
    return build(source, destination, PORT, PAYLOAD)


def frame(family: int, number: int) -> bytes:
    """From us to a peer, without a scent."""
    return ETHERNET[family] + datagram(family, OWN[family], address_text(family, number))
