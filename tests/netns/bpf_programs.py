"""The programs of the packet path without a network: the kernel runs them on single packets (BPF_PROG_TEST_RUN).

Their maps are filled by the functions that the daemon fills them with. A test run makes a frame of Ethernet
received on lo, whose address is all zeros, with at least a whole IP header behind it. The programs for links
without a header cannot be run so: the kernel takes 14 bytes for one in any case.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from struct import Struct
from typing import NamedTuple

import wire_setup
from msgspec.structs import replace

from scentd.core.offload import decode, encode
from scentd.core.offload.receiving import receiving_entry, with_lag
from scentd.core.tables import StampTable
from scentd.datapath.offload import counts
from scentd.datapath.offload.bpfmap import F_LOCK, RingBuffer
from scentd.datapath.offload.bpfprog import prog_test_run
from scentd.datapath.offload.programs import OBJECTS, Programs
from scentd.wire import maps

UNSPEC, SHOT = -1, 2  # TC_ACT_*
IPV4, IPV6 = 0x0800, 0x86DD
TO_US = bytes(6)
MARKS = encode.Marks(verified=0x100)
LONG_NS = 10**15  # eleven days: no test ends a run of fragments, or the lease
COARSE = 6  # CLOCK_MONOTONIC_COARSE of linux/time.h, the programs' clock

# struct __sk_buff: mark, ingress_ifindex, gso_segs, gso_size; of the rest a test run wants zeros.
CONTEXT = Struct("=8xI24xI124xI8xI12x")


def next_tick() -> None:
    """Wait until what the programs remember of flows has ended."""
    tick = time.clock_gettime_ns(COARSE)
    while time.clock_gettime_ns(COARSE) == tick:
        time.sleep(0.0005)


class Run(NamedTuple):
    """What a program made of a packet. `counts` are the counters that moved, by their names in a worker's report."""

    action: int
    packet: bytes
    mark: int
    counts: dict[str, int]
    events: list[decode.OffloadEvent]
    refused: list[decode.RefusedPacket]


class Kernel:
    """Both programs, with the tables of wire_setup unless others are given."""

    def __init__(self) -> None:
        self._programs = Programs({})
        self._maps = self._programs.maps
        self._events: list[decode.OffloadEvent] = []
        self._refused: list[decode.RefusedPacket] = []
        self._ring = RingBuffer(self._programs.events(), self._take)
        self._pairs: frozenset[int] = frozenset()
        # As old as it may be, so that no test depends on its own speed.
        offset = time.time() - time.monotonic()
        pairs = {pair.pair: pair for pair in wire_setup.STAMP_TABLE.pairs}
        sent = {n: replace(out, expires=time.time() + LONG_NS / 1e9) for n, out in wire_setup.outgoing().items()}
        self.outgoing = dict(encode.outgoing_entry(pairs[number], out, offset) for number, out in sent.items())

    def close(self) -> None:
        self._ring.close()
        self._programs.close()

    # -- tables ----------------------------------------------------------

    def stamp_by(
        self,
        table=wire_setup.STAMP_TABLE,
        unsigned: Sequence[str] = (),
        forwarded: int = 0,
        own=(),
        run_ns: int = LONG_NS,
    ) -> None:
        made = encode.stamp_entries(table, unsigned, forwarded, run_ns, own)
        self._configure("stamp", made.prefixes, made.settings)

    def verify_by(
        self,
        table=wire_setup.VERIFY_TABLE,
        marks=MARKS,
        quarantine: dict[str, int] | None = None,
        stamp: StampTable | None = None,
        barred: dict[int, dict[str, int]] | None = None,
    ) -> None:
        """`quarantine`: CLOCK_MONOTONIC seconds of release by prefix; `barred`: the same by pair; `stamp`: what the
        same host stamps.
        """
        made = encode.verify_entries(table, (), marks, stamp or StampTable())
        prefixes = made.prefixes | encode.quarantine_entries(quarantine or {}) | encode.barred_entries(barred or {})
        self._configure("verify", prefixes, made.settings_for(prefixes))
        self._fill("verify.identities", made.identities)
        self._pairs = made.pairs

    def bridge(self, *ports: int) -> None:
        """These interfaces are ports of bridges."""
        for name in OBJECTS:
            self._fill(f"{name}.ports", {encode.PAIR.pack(n): encode.PAIR.pack(1) for n in ports})

    def _configure(self, name: str, prefixes: dict[bytes, bytes], settings: bytes) -> None:
        self._fill(f"{name}.prefixes", prefixes)
        for which in (0, 1):
            self._maps[f"{name}.settings"].update(encode.PAIR.pack(which), settings)
        self._turn(name)

    def _turn(self, name: str) -> None:
        """What the program keeps about addresses that it has seen holds until the selector turns."""
        selector, zero = self._maps[f"{name}.selector"], encode.PAIR.pack(0)
        [turns] = encode.PAIR.unpack(selector.lookup(zero))
        selector.update(zero, encode.PAIR.pack(turns + 1))

    def _fill(self, name: str, want: dict[bytes, bytes]) -> None:
        there = self._maps[name]
        there.delete_many([key for key, _ in there.items() if key not in want])
        there.update_many(want.items())

    def fresh_stamper(self) -> None:
        """Nothing was sent in this epoch."""
        self._fill("stamp.outgoing", self.outgoing)

    def expired_stamper(self) -> None:
        """What there is to send has expired: when the host booted."""
        at, size = maps.OUTGOING_EXPIRES_AT, Struct("=Q").size
        expired = {key: value[:at] + bytes(size) + value[at + size :] for key, value in self.outgoing.items()}
        self._fill("stamp.outgoing", expired)

    def forget_pairs(self, turn: bool = True) -> None:
        """The daemon has made no memory for them yet; without `turn` processors still remember what they found."""
        self._fill("verify.receiving", {})
        if turn:
            self._turn("verify")

    def fresh_verifier(self, forget: bool = True) -> None:
        """Nothing was seen yet; no processor remembers a flow, with `forget` nor addresses either."""
        empty = bytes(maps.RECEIVING_SIZE)
        self._fill("verify.receiving", {encode.PAIR.pack(pair): empty for pair in self._pairs})
        self._fill("verify.nodes", {})
        if forget:
            self._turn("verify")
        else:
            next_tick()

    # -- packets ---------------------------------------------------------

    def stamp(self, packet: bytes, **frame) -> Run:
        return self._run("stamp", packet, **frame)

    def _take(self, data: bytes) -> None:
        event = decode.parse_event(data)
        if isinstance(event, decode.RefusedPacket):
            self._refused.append(event)
        else:
            self._events.append(event)

    def verify(self, packet: bytes, now: float | None, lease: int = LONG_NS, **frame) -> Run:
        """`now`: Unix seconds, to the next tick of the programs' clock, or what has become of the last ones; `lease`:
        ns that are left of it."""
        if now is not None:
            self._set_clock(time.clock_gettime_ns(COARSE), now, lease)
        return self._run("verify", packet, **frame)

    def verify_all(self, packets: Iterable[tuple[bytes, float]], lag: int = 0) -> list[Run]:
        """What becomes of packets one after the other, from nothing seen on, each at exactly its Unix time. `lag`: of
        each pair's stampers.
        """
        planned = list(packets)
        while True:
            self.fresh_verifier()
            for pair in self.states() if lag else ():
                self.set_highest(pair, 0, lag=lag)
            ran = []
            for packet, now in planned:
                tick = time.clock_gettime_ns(COARSE)
                self._set_clock(tick, now, LONG_NS)
                ran.append(self._run("verify", packet))
                if time.clock_gettime_ns(COARSE) != tick:
                    break
            else:
                return ran

    def _set_clock(self, tick: int, now: float, lease: int) -> None:
        until = max(tick + lease, 0)
        clock = maps.CLOCK.pack(encode.nanoseconds(now) - tick, until, until)
        self._maps["verify.clock"].update(encode.PAIR.pack(0), clock)

    def _run(
        self,
        name: str,
        packet: bytes,
        kind: int | None = None,
        destination: bytes = TO_US,
        mark: int = 0,
        received_on: int = 0,
        segments: int = 0,
        segment_size: int = 0,
        port: bool = False,
    ) -> Run:
        if kind is None:
            kind = IPV6 if packet[:1] and packet[0] >> 4 == 6 else IPV4
        header = destination + bytes(6) + kind.to_bytes(2, "big")
        before = dict(self._maps[f"{name}.counters"].items())
        self._events.clear()
        self._refused.clear()
        program = self._programs.program("egress" if name == "stamp" else "ingress", len(header), port)
        context = CONTEXT.pack(mark, received_on, segments, segment_size)
        action, frame, context, _ = prog_test_run(program, header + packet, context)
        assert frame[: len(header)] == header
        self._ring.consume()
        after = self._maps[f"{name}.counters"].items()
        moved = {
            decode.COUNTERS[name][encode.PAIR.unpack(key)[0]]: counts.packets(value) - counts.packets(before[key])
            for key, value in after
            if value != before[key]
        }
        return Run(
            action, frame[len(header) :], CONTEXT.unpack(context)[0], moved, list(self._events), list(self._refused)
        )

    def of_pairs(self) -> Counter[tuple[int, str]]:
        """As counts.of_pairs(), without the rows of all the pairs that there could be."""
        found, accepted = counts.refused(self._programs), self._maps["verify.accepted"]
        states = self.states()
        for pair in self._pairs:
            found[pair, "accepted"] += states[pair].accepted if pair in states else 0
            found[pair, "accepted"] += counts.packets(accepted.lookup(encode.PAIR.pack(pair)))
        return found

    # -- what was kept ---------------------------------------------------

    def set_highest(self, pair: int, epoch: int, leapt: int = 0, lag: int = 0) -> None:
        """As the daemon does after a fall back."""
        key = encode.PAIR.pack(pair)
        self._maps["verify.receiving"].update(key, receiving_entry(epoch, 0, 0, 0, leapt, lag), F_LOCK)
        self._turn("verify")

    def set_lag(self, pair: int, lag: int) -> None:
        """As the daemon does after a profile that says so."""
        receiving, key = self._maps["verify.receiving"], encode.PAIR.pack(pair)
        receiving.update(key, with_lag(receiving.lookup(key, F_LOCK), lag), F_LOCK)

    def states(self) -> dict[int, decode.PairState]:
        found = self._maps["verify.receiving"].items(F_LOCK)
        return {encode.PAIR.unpack(key)[0]: decode.parse_receiving(value) for key, value in found}

    def nodes(self) -> dict[int, set[bytes]]:
        """Source addresses of accepted packets, by pair."""
        made: dict[int, set[bytes]] = {}
        for pair, address in map(decode.parse_node, self._maps["verify.nodes"].keys()):
            made.setdefault(pair, set()).add(address)
        return made
