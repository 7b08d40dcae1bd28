"""The verifier: scented packets in, bare packets or a named refusal out. Pure: no socket, no clock.

The packet path is `Verifier.verify`. House rule: nothing of a packet is parsed as a
scent before lengths are checked, and nothing of a scent is believed before its tag is.
What was believed once is kept byte for byte, so that the next packet of the flow
with the same scent needs no tag again.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, MutableSequence
from struct import Struct
from typing import NamedTuple

from scentd.core.packet import quote
from scentd.core.packet.stamp import FRAGMENTED, MAX_FLOWS, unpack_ipv4, unpack_ipv6
from scentd.core.tables import Incoming, Treatments, VerifyTable
from scentd.model import Fragment
from scentd.prefix import PrefixMap
from scentd.wire import ip, layout, tag
from scentd.wire.carrier import carrier_of
from scentd.wire.layout import Treatment

MAX_NODES = 4096  # source addresses remembered per pair between two drains

Slots = MutableSequence[int] | memoryview
Unquote = Callable[[bytes, ip.Parsed], bytes | None]

_NOPS = b"\x01" * layout.IPV4_OPTION_LEN
_NOPS_SUM = ip.word_sum(_NOPS)
_IPV4_FIRST = 0x40 | (20 + layout.IPV4_OPTION_LEN) // 4
_IPV4_END = 20 + layout.IPV4_OPTION_LEN
_IPV6_END = 40 + layout.IPV6_HEADER_LEN
_pack_ipv4 = Struct(f">QI{8 + layout.IPV4_OPTION_LEN}s").pack  # as in stamp.py
_pack_ipv6 = Struct(">Q32s").pack


class Outcome(NamedTuple):
    """A packet that is not simply passed on stripped.

    `verdict` is one of layout.VERDICT_*; an accepted beacon has ACCEPTED and "drop".
    """

    verdict: int
    treatment: Treatment
    source: bytes


class IncomingPair:
    """One pair's state at its receiver: the fragments and nodes seen in the current epoch."""

    __slots__ = ("addresses", "before", "epoch", "glance", "incoming", "local", "nodes", "seen")

    def __init__(self, incoming: Incoming) -> None:
        self.incoming = incoming
        self.addresses = PrefixMap((p, True) for p in incoming.peer)
        self.local = PrefixMap((p, True) for p in incoming.network)
        self.epoch = 0
        self.before = 0  # the epoch before it, the oldest that `grace` is for
        self.seen = 0  # bit i: fragment i of `epoch` was handed on
        self.glance = 0  # of `epoch`, unmasked
        self.nodes: set[bytes] = set()

    def serves(self, parsed: ip.Parsed) -> bool:
        own = not self.incoming.network or self.local.get(parsed.destination)
        return bool(own and self.addresses.get(parsed.source))


class Verifier:
    """Verifies and strips packets by a table of pairs.

    `epochs` holds two numbers per slot, the highest epoch accepted and the second
    at which it was first seen; it may be shared between processes and outlive them.
    `verify` returns the bare packet, or an Outcome. `events` collects what the
    daemon has to know; the edge drains it after each batch.
    """

    def __init__(self, epochs: Slots, unquote: Unquote | None = None) -> None:
        """`unquote` rewrites an ICMP error that quotes a packet of ours, or returns None."""
        self._unquote = unquote
        self.unquoted = 0
        self._epochs = epochs
        self._table = VerifyTable()
        self._by_key: dict[bytes, list[IncomingPair]] = {}
        self._treatments: PrefixMap[Treatments] = PrefixMap()
        self._now = 0.0
        # By protocol; the values are the checksum's delta and what stands in place of addresses and option.
        self._believed4: list[dict[bytes, tuple[int, bytes]]] = [{} for _ in range(256)]
        self._believed6: dict[bytes, int] = {}
        self._kept = 0
        self.events: list[Fragment] = []

    def configure(self, table: VerifyTable, epochs: Slots | None = None) -> None:
        """Take a new table; what was seen of pairs that stay is kept."""
        if epochs is not None:
            self._epochs = epochs
        before = {r.incoming.pair: r for known in self._by_key.values() for r in known}
        self._table = table
        self._treatments = PrefixMap(table.treatments)
        self._by_key = {}
        for incoming in table.incoming:
            receiving = IncomingPair(incoming)
            old = before.get(incoming.pair)
            if old is not None and old.incoming.key_id == incoming.key_id:
                receiving.epoch, receiving.seen, receiving.nodes = old.epoch, old.seen, old.nodes
                receiving.before, receiving.glance = old.before, old.glance
            self._by_key.setdefault(incoming.key_id, []).append(receiving)
        self._forget()

    def tick(self, now: float) -> None:
        """The time of the packets that follow, Unix seconds. What was believed is checked anew each second."""
        if int(now) != int(self._now):
            self._forget()
        self._now = now

    def drain_nodes(self) -> dict[int, list[bytes]]:
        """Source addresses of accepted packets since the last drain, by pair."""
        drained = {}
        for known in self._by_key.values():
            for receiving in known:
                if receiving.nodes:
                    drained[receiving.incoming.pair] = list(receiving.nodes)
                    receiving.nodes.clear()
        return drained

    def glance(self, packet: bytes) -> int:
        """The newest glance of the network that an accepted packet (its scent still on) came from, one byte."""
        parsed = ip.parse(packet)
        key_id = packet[parsed.scent_at + layout.SCENT_KEY_ID_AT :][:4]
        return next((r.glance for r in self._by_key.get(key_id, ()) if r.serves(parsed)), 0)

    def verify(self, packet: bytes) -> bytes | Outcome:
        """The packet without its scent, or what is to be done with it instead."""
        try:
            first = packet[0]
            if first == _IPV4_FIRST:
                believed = self._believed4[packet[9]].get(packet[12 : _IPV4_END + 4])
                if believed is not None:
                    head, rest = unpack_ipv4(packet)
                    if not head & FRAGMENTED and head >> 32 & 0xFFFF == len(packet):
                        gain, middle = believed
                        rest += gain if (rest & 0xFFFF) + gain < 0xFFFF else gain - 0xFFFF
                        return _pack_ipv4(head, rest, middle) + packet[_IPV4_END:]
            elif first >> 4 == 6 and packet[6] == ip.DESTINATION:
                delta = self._believed6.get(packet[8 : _IPV6_END + 4])
                if delta is not None:
                    (head,) = unpack_ipv6(packet)
                    if head >> 16 & 0xFFFF == len(packet) - 40:
                        return _pack_ipv6(head + delta, packet[8:40]) + packet[_IPV6_END:]
        except IndexError:  # shorter than its header; a try costs nothing, a check would
            return self._refuse(layout.VERDICT_MALFORMED, ip.Parsed(malformed=True))
        return self._verify_new(packet)

    def _verify_new(self, packet: bytes) -> bytes | Outcome:
        parsed = ip.parse(packet)
        if parsed.malformed:
            return self._refuse(layout.VERDICT_MALFORMED, parsed)
        if not parsed.scent_at:
            return self._unquoted(packet, parsed) or self._absent(packet, parsed)
        scent = packet[parsed.scent_at : parsed.scent_at + layout.LEN]
        checked = self._check(packet, parsed, scent)
        if isinstance(checked, int):
            return self._refuse(checked, parsed)
        self._note(checked, parsed, scent)
        if scent[2] & layout.FLAG_BEACON:
            return Outcome(layout.VERDICT_ACCEPTED, "drop", parsed.source)
        if parsed.ports and scent[2] & layout.FLAG_PORTS:
            self._believe(packet, parsed)
        return self._unquoted(packet, parsed) or carrier_of(parsed).strip(packet, parsed)

    def _unquoted(self, packet: bytes, parsed: ip.Parsed) -> bytes | None:
        if self._unquote is None or not quote.is_too_big(packet, parsed):
            return None
        bare = carrier_of(parsed).strip(packet, parsed) if parsed.scent_at else packet
        rewritten = self._unquote(bare, ip.parse(bare))
        self.unquoted += rewritten is not None
        return rewritten

    def _check(self, packet: bytes, parsed: ip.Parsed, scent: bytes) -> IncomingPair | int:
        """The pair whose tag is right, or a refusal. The order is part of the specification."""
        _, version_flags, _, key_id, epoch, index_count, _, given = layout.SCENT.unpack(scent)
        if version_flags >> 4 != layout.VERSION:
            return layout.VERDICT_UNSUPPORTED_VERSION
        flags = version_flags & 15
        if flags & 8 or index_count & 15 != layout.FRAGMENTS or index_count >> 4 >= layout.FRAGMENTS:
            return layout.VERDICT_MALFORMED
        known = self._by_key.get(key_id)
        if known is None:
            return layout.VERDICT_UNKNOWN_KEY
        receiving = next((r for r in known if r.serves(parsed)), None)
        if receiving is None:
            return layout.VERDICT_WRONG_ADDRESS
        if not self._binding_holds(receiving.incoming, flags, packet, parsed):
            return layout.VERDICT_WRONG_BINDING
        if epoch > self._now + self._table.max_future:
            return layout.VERDICT_FUTURE
        key = receiving.incoming.tag_keys.get(epoch // layout.PERIOD)
        if epoch < self._now - self._table.max_age or key is None:
            return layout.VERDICT_STALE
        if not hmac.compare_digest(tag.compute(key, scent[: layout.TAGGED_LEN], parsed), given):
            return layout.VERDICT_BAD_TAG
        if not self._fresh(receiving, epoch):
            return layout.VERDICT_REPLAYED_EPOCH
        return receiving

    @staticmethod
    def _binding_holds(incoming: Incoming, flags: int, packet: bytes, parsed: ip.Parsed) -> bool:
        """Whether the tag covers as much as this peer's packets must have covered."""
        if flags & layout.FLAG_SENDER:
            return incoming.sender_bound and not flags & layout.FLAG_PORTS
        if incoming.sender_bound:
            return False
        if flags & layout.FLAG_PORTS:
            return bool(parsed.ports)
        return not parsed.ports or len(packet) > layout.PORTLESS_MIN

    def _fresh(self, receiving: IncomingPair, epoch: int) -> bool:
        """Whether an authentic epoch is the highest yet, or for `grace` seconds not below the one before.

        Workers share the highest without a lock. Two that write at once may lower it for a
        moment, or mix the second of one with the epoch of the other; the next packet of the
        newer epoch mends it.
        """
        slot = receiving.incoming.slot
        highest = self._epochs[2 * slot]
        if epoch > highest:
            receiving.before = highest
            if epoch > self._epochs[2 * slot]:  # read again: another worker may have just written a higher one
                self._epochs[2 * slot + 1] = int(self._now)
                self._epochs[2 * slot] = epoch
            self._forget()
            return True
        if epoch == highest:
            return True
        # Where another worker raised the highest, our own newest is the best that we know of the one before it.
        # A verifier that has just started has seen neither: no grace.
        oldest = receiving.epoch if 0 < receiving.epoch < highest else receiving.before
        return 0 < oldest <= epoch and 0 <= self._now - self._epochs[2 * slot + 1] <= self._table.grace

    def _note(self, receiving: IncomingPair, parsed: ip.Parsed, scent: bytes) -> None:
        """Hand on what an accepted scent says, each fragment once per epoch."""
        _, _, masked, _, epoch, index_count, data, _ = layout.SCENT.unpack(scent)
        if len(receiving.nodes) < MAX_NODES:
            receiving.nodes.add(parsed.source)
        if epoch < receiving.epoch:
            return
        if epoch > receiving.epoch:
            receiving.before = max(receiving.before, receiving.epoch)  # another worker may have raised the highest
            receiving.epoch, receiving.seen = epoch, 0
        index = index_count >> 4
        if receiving.seen >> index & 1:
            return
        receiving.seen |= 1 << index
        glance_key = receiving.incoming.glance_keys[epoch // layout.PERIOD]
        receiving.glance = masked ^ tag.glance_mask(glance_key, epoch)
        load, threat = tag.glance_levels(receiving.glance)
        self.events.append(Fragment(receiving.incoming.pair, epoch, index, data, load, threat, parsed.source))

    def _believe(self, packet: bytes, parsed: ip.Parsed) -> None:
        """Remember the bytes that the verdict depends on. Only authentic packets get here, so nobody else fills it.

        A dict compares by hash and memcmp, not in constant time; what could be
        learned from that is whether bytes equal a scent that travels in clear.
        """
        if self._kept >= MAX_FLOWS:
            self._forget()
        if parsed.version == 4 and parsed.scent_at == 22 and parsed.transport_at == _IPV4_END:
            delta = (ip.word_sum(packet[20:_IPV4_END]) - _NOPS_SUM) % 0xFFFF
            self._believed4[parsed.protocol][packet[12 : _IPV4_END + 4]] = delta, packet[12:20] + _NOPS
        elif parsed.version == 6 and parsed.transport_at == _IPV6_END:
            delta = -(layout.IPV6_HEADER_LEN << 16) + ((parsed.protocol - ip.DESTINATION) << 8)
            self._believed6[packet[8 : _IPV6_END + 4]] = delta
        self._kept += 1

    def _forget(self) -> None:
        if self._kept:
            for table in self._believed4:
                if table:
                    table.clear()
            self._believed6.clear()
            self._kept = 0

    def _absent(self, packet: bytes, parsed: ip.Parsed) -> Outcome:
        treatments = self._treatments.get(parsed.source) or self._table.default
        treatment = treatments.absent
        # Stampers leave only what they cannot: TCP is segmented, never fragmented, and what is small stays whole.
        in_parts = parsed.fragment or len(packet) > layout.PORTLESS_MIN
        if parsed.version == 6 and parsed.protocol != ip.TCP and in_parts:
            treatment = treatments.absent_ipv6_fragment
        return Outcome(layout.VERDICT_ABSENT, treatment, parsed.source)

    def _refuse(self, verdict: int, parsed: ip.Parsed) -> Outcome:
        treatments = self._treatments.get(parsed.source) or self._table.default
        return Outcome(verdict, treatments.rejected, parsed.source)
