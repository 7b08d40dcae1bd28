"""The verifier: scented packets in, bare packets or a named refusal out. Pure: no socket, no clock.

The packet path is `Verifier.verify`. House rule: it checks lengths before it parses a scent, and checks the tag before
it believes the scent. It keeps the bytes of a flow's accepted scent, so that the next packet of the flow with the same
bytes needs no tag.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from struct import Struct
from typing import NamedTuple

from scentd.core.packet import mss, quote
from scentd.core.packet.incoming_pair import IncomingPair
from scentd.core.packet.stamp import IPV4_FRAGMENT_BITS, MAX_FLOWS, unpack_ipv4, unpack_ipv6
from scentd.core.tables import (
    BEFORE,
    EPOCH_ROW,
    LAG,
    LEAPT,
    SINCE,
    Incoming,
    IncomingKeys,
    Slots,
    Treatments,
    VerifyTable,
    raise_row,
)
from scentd.model import Fragment
from scentd.prefix import PrefixMap
from scentd.wire import ip, layout, tag
from scentd.wire.carrier import carrier_of
from scentd.wire.layout import Treatment
from scentd.wire.maps import NO_PAIR

BARRED = -1  # accepted, but its sender is in quarantine at an address where others are, too
EPOCH_MAX = 0xFFFFFFFF
MAX_NODES = 4096  # source addresses kept for a pair between two calls of drain_nodes()

Unquote = Callable[[bytes, ip.Parsed], bytes | None]
MakeRoom = Callable[[bytes, ip.Parsed], bytes]

_NOPS = b"\x01" * layout.IPV4_OPTION_LEN
_NOPS_SUM = ip.word_sum(_NOPS)
_IPV4_FIRST = 0x40 | (20 + layout.IPV4_OPTION_LEN) // 4
_IPV4_END = 20 + layout.IPV4_OPTION_LEN
_IPV6_END = 40 + layout.IPV6_HEADER_LEN
_IPV4_FLAGS_AT, _IPV6_FLAGS_AT, _SYN = _IPV4_END + mss.FLAGS_AT, _IPV6_END + mss.FLAGS_AT, mss.SYN  # of TCP
_pack_ipv4 = Struct(f">QI{8 + layout.IPV4_OPTION_LEN}s").pack  # as in stamp.py
_pack_ipv6 = Struct(">Q32s").pack


class Outcome(NamedTuple):
    """Verdict and treatment of a packet that is not just stripped and passed on.

    `verdict` is one of layout.VERDICT_*, or BARRED; an accepted beacon has ACCEPTED and "drop".
    """

    verdict: int
    treatment: Treatment
    pair: int  # any of the peer's whose addresses the packet has, or whose key it names; NO_PAIR: nobody's we know
    lowered: bytes | None = None  # a SYN that is to pass in this form


class Verifier:
    """Verifies and strips packets by a table of pairs.

    `epochs` holds a tables.EpochRow for each slot. Processes may share it, and it may outlive them. `verify` returns
    the bare packet, or an Outcome. `events` collects the fragments for the daemon; the caller empties it after each
    batch.
    """

    def __init__(self, epochs: Slots, unquote: Unquote | None = None, make_room: MakeRoom | None = None) -> None:
        """`unquote` rewrites an ICMP error that quotes a packet of ours, or returns None; `make_room` lowers what a SYN
        announces. Both are the stamper's.
        """
        self._unquote = unquote
        self._make_room = make_room
        self.errors_rewritten = 0
        self._epochs = epochs
        self._table = VerifyTable()
        self._pairs: dict[int, IncomingPair] = {}
        self._by_key: dict[bytes, list[tuple[IncomingPair, tuple[IncomingKeys, ...]]]] = {}
        self._treatments: PrefixMap[Treatments] = PrefixMap()
        self._now = 0.0
        # By protocol; the values are the checksum's delta, the bytes that replace addresses and option, the pair, and
        # whether it is TCP.
        self._recent4: list[dict[bytes, tuple[int, bytes, IncomingPair, bool]]] = [{} for _ in range(256)]
        self._recent6: dict[bytes, tuple[int, IncomingPair, bool]] = {}
        self._recent_count = 0
        self.events: list[Fragment] = []
        self._duplicates: dict[int, int] = {}  # by pair: packets since the last drain that tell of a second issuer
        self._refused_epochs: dict[int, int] = {}  # by pair, of its last packet that was stale or from the future

    def configure(self, table: VerifyTable, epochs: Slots | None = None) -> None:
        """Take a new table. Pairs that are in the old and the new table keep their state."""
        if epochs is not None:
            self._epochs = epochs
        before, self._pairs = self._pairs, {}
        self._table = table
        self._treatments = PrefixMap(table.treatments)
        self._by_key = {}
        for incoming in table.incoming:
            pair = before.get(incoming.pair)
            if pair is None:
                pair = IncomingPair(incoming)
            else:
                pair.configure(incoming)
            self._pairs[incoming.pair] = pair
            for sender, candidates in incoming.by_sender().items():
                self._by_key.setdefault(sender, []).append((pair, candidates))
        self._forget()

    def tick(self, now: float) -> None:
        """Set the time of the packets that follow, Unix seconds. Each second every flow's tag is checked anew."""
        if int(now) != int(self._now):
            self._forget()
        self._now = now

    def bar(self, until: Mapping[int, Mapping[str, float]]) -> None:
        """Drop the packets of these pairs from these sources, once they are accepted, each until a Unix time."""
        for number, pair in self._pairs.items():
            found = until.get(number)
            pair.barred = PrefixMap(found.items()) if found else None
        self._forget()

    def drain_nodes(self) -> dict[int, list[bytes]]:
        """Source addresses of accepted packets since the last drain, by pair."""
        drained = {}
        for number, pair in self._pairs.items():
            if pair.nodes:
                drained[number] = list(pair.nodes)
                pair.nodes.clear()
        return drained

    def drain_accepted(self) -> dict[int, int]:
        """Accepted packets since the last drain, by pair."""
        drained = {}
        for number, pair in self._pairs.items():
            if pair.accepted:
                drained[number] = pair.accepted
                pair.accepted = 0
        return drained

    def drain_duplicates(self) -> dict[int, int]:
        """Packets since the last drain that tell of a second machine with the peer's key, by pair."""
        drained, self._duplicates = self._duplicates, {}
        return drained

    def drain_refused_epochs(self) -> dict[int, int]:
        """The epoch of the last packet that was refused for it since the last drain, by pair."""
        drained, self._refused_epochs = self._refused_epochs, {}
        return drained

    def glance(self, packet: bytes) -> int:
        """The newest glance, one byte, of the pair of an accepted packet. The packet must still have its scent."""
        parsed = ip.parse(packet)
        key_id = packet[parsed.scent_at + layout.SCENT_KEY_ID_AT :][:4]
        return next((p.glance for p, _ in self._by_key.get(key_id, ()) if p.serves(parsed)), 0)

    def verify(self, packet: bytes) -> bytes | Outcome:
        """The packet without its scent, or an Outcome."""
        try:
            first = packet[0]
            if first == _IPV4_FIRST:
                recent = self._recent4[packet[9]].get(packet[12 : _IPV4_END + 4])
                if recent is not None:
                    head, rest = unpack_ipv4(packet)
                    gain, middle, pair, tcp = recent
                    is_syn = tcp and packet[_IPV4_FLAGS_AT] & _SYN
                    if not is_syn and not head & IPV4_FRAGMENT_BITS and head >> 32 & 0xFFFF == len(packet):
                        pair.accepted += 1
                        rest += gain if (rest & 0xFFFF) + gain < 0xFFFF else gain - 0xFFFF
                        return _pack_ipv4(head, rest, middle) + packet[_IPV4_END:]
            elif first >> 4 == 6 and packet[6] == ip.DESTINATION:
                found = self._recent6.get(packet[8 : _IPV6_END + 4])
                if found is not None:
                    (head,) = unpack_ipv6(packet)
                    delta, pair, tcp = found
                    if not (tcp and packet[_IPV6_FLAGS_AT] & _SYN) and head >> 16 & 0xFFFF == len(packet) - 40:
                        pair.accepted += 1
                        return _pack_ipv6(head + delta, packet[8:40]) + packet[_IPV6_END:]
        except IndexError:  # the packet is shorter than its headers; a try costs nothing, a check of the length would
            pass
        return self._verify_new(packet)

    def _verify_new(self, packet: bytes) -> bytes | Outcome:
        parsed = ip.parse(packet)
        if self._make_room is None:
            return self._judge(packet, parsed)
        roomy = self._make_room(packet, parsed)  # no tag covers what it changes
        outcome = self._judge(roomy, parsed)
        if isinstance(outcome, Outcome) and roomy is not packet:
            return outcome._replace(lowered=roomy)
        return outcome

    def _judge(self, packet: bytes, parsed: ip.Parsed) -> bytes | Outcome:
        if parsed.malformed:
            return self._refuse(layout.VERDICT_MALFORMED, parsed)
        if not parsed.scent_at:
            return self._rewrite_error(packet, parsed) or self._absent(packet, parsed)
        scent = packet[parsed.scent_at : parsed.scent_at + layout.LEN]
        found = self._check(packet, parsed, scent)
        if isinstance(found, int):
            return self._refuse(
                found, parsed, self._named(scent, parsed) if found > layout.VERDICT_WRONG_ADDRESS else NO_PAIR
            )
        pair, fitting = found
        if fitting is not None:
            self._record(pair, fitting, parsed, scent)
        if pair.barred is not None and (pair.barred.get(parsed.source) or 0.0) > self._now:
            return Outcome(BARRED, "drop", pair.incoming.pair)
        if scent[2] & layout.FLAG_BEACON:
            pair.accepted += 1
            return Outcome(layout.VERDICT_ACCEPTED, "drop", pair.incoming.pair)
        if parsed.ports and scent[2] & layout.FLAG_PORTS:
            self._keep_recent(packet, parsed, pair)
        rewritten = self._rewrite_error(packet, parsed)
        if rewritten is not None:
            return rewritten
        pair.accepted += 1
        return carrier_of(parsed).strip(packet, parsed)

    def _rewrite_error(self, packet: bytes, parsed: ip.Parsed) -> bytes | None:
        """The packet without its own scent, if it is an ICMP error that `unquote` rewrites; otherwise None."""
        if self._unquote is None or not quote.is_too_big(packet, parsed):
            return None
        bare = carrier_of(parsed).strip(packet, parsed) if parsed.scent_at else packet
        rewritten = self._unquote(bare, ip.parse(bare))
        self.errors_rewritten += rewritten is not None
        return rewritten

    def _check(self, packet: bytes, parsed: ip.Parsed, scent: bytes) -> tuple[IncomingPair, IncomingKeys | None] | int:
        """The pair and the keys by which the tag is right, or a verdict. The order is part of the specification.

        No keys: a stamper that lags behind the others has made the scent, and nothing of it is used.
        """
        _, version_flags, _, key_id, epoch, index_count, _, packet_tag = layout.SCENT.unpack(scent)
        if version_flags >> 4 != layout.VERSION:
            return layout.VERDICT_UNSUPPORTED_VERSION
        flags = version_flags & 15
        if flags & 8 or index_count & 15 != layout.FRAGMENTS or index_count >> 4 >= layout.FRAGMENTS:
            return layout.VERDICT_MALFORMED
        known = self._by_key.get(key_id)
        if known is None:
            return layout.VERDICT_UNKNOWN_KEY
        pair, candidates = next((entry for entry in known if entry[0].serves(parsed)), (None, ()))
        if pair is None:
            return layout.VERDICT_WRONG_ADDRESS
        if not self._is_bound(pair.incoming, flags, packet, parsed):
            return layout.VERDICT_WRONG_BINDING
        if epoch > self._now + self._table.max_future:
            self._refused_epochs[pair.incoming.pair] = epoch
            return layout.VERDICT_FUTURE
        period = epoch // layout.PERIOD
        if epoch < self._now - self._table.max_age or period not in candidates[0].tag_keys:
            self._refused_epochs[pair.incoming.pair] = epoch
            return layout.VERDICT_STALE
        if len(candidates) > 1 and pair.key_ids == candidates[1].key_ids:
            candidates = candidates[::-1]  # the keys of the newest epoch first: most packets need one tag
        for fitting in candidates:
            made = tag.compute(fitting.tag_keys[period], scent[: layout.TAGGED_LEN], parsed)
            if hmac.compare_digest(made, packet_tag):
                if self._is_ahead_again(pair, epoch):
                    self._refused_epochs[pair.incoming.pair] = epoch
                    return layout.VERDICT_FUTURE
                if self._is_fresh(pair, epoch):
                    return pair, fitting
                if self._lags(pair, epoch):
                    return pair, None
                self._note_replayed(pair, parsed.source, epoch)
                return layout.VERDICT_REPLAYED_EPOCH
        return layout.VERDICT_BAD_TAG

    @staticmethod
    def _is_bound(incoming: Incoming, flags: int, packet: bytes, parsed: ip.Parsed) -> bool:
        """Whether the tag covers all that it must cover in packets of this peer."""
        if flags & layout.FLAG_SENDER:
            return incoming.sender_bound and not flags & layout.FLAG_PORTS
        if incoming.sender_bound:
            return False
        if flags & layout.FLAG_PORTS:
            return bool(parsed.ports)
        return not parsed.ports or len(packet) > layout.PORTLESS_MIN

    def _is_ahead_again(self, pair: IncomingPair, epoch: int) -> bool:
        """Whether an epoch of the stretch that was accepted while both clocks were wrong is ahead of ours."""
        leapt = self._epochs[EPOCH_ROW * pair.incoming.slot + LEAPT]
        return epoch <= leapt and epoch > self._now + layout.LEAPT_FUTURE

    def _is_fresh(self, pair: IncomingPair, epoch: int) -> bool:
        """Whether an authentic epoch is the highest yet or, during `grace`, at least the epoch before the highest.

        Workers share the row without a lock. Two workers that write at once may lower the highest for a moment, or
        mix numbers of the one with those of the other; the next packet of the newer epoch repairs the row.
        """
        at = EPOCH_ROW * pair.incoming.slot
        highest = self._epochs[at]
        if pair.epoch > highest:  # the highest has fallen back, since both clocks were wrong
            pair.epoch = 0
        if epoch > highest:
            # It reads the highest again: another worker may just have written a higher one.
            raise_row(self._epochs, pair.incoming.slot, epoch, min(int(self._now), EPOCH_MAX))
            self._forget()
            return True
        if epoch == highest:
            return True
        return 0 < self._epochs[at + BEFORE] <= epoch and 0 <= self._now - self._epochs[at + SINCE] <= self._table.grace

    def _lags(self, pair: IncomingPair, epoch: int) -> bool:
        """Whether an authentic epoch is as far behind the highest as the network says that its stampers may be."""
        at = EPOCH_ROW * pair.incoming.slot
        return self._epochs[at] - epoch <= self._epochs[at + LAG]

    def _record(self, pair: IncomingPair, fitting: IncomingKeys, parsed: ip.Parsed, scent: bytes) -> None:
        """Record the source, the glance and the fragment of an accepted scent. A fragment is an event once an epoch."""
        _, _, masked, _, epoch, index_count, data, _ = layout.SCENT.unpack(scent)
        if len(pair.nodes) < MAX_NODES:
            pair.nodes.add(parsed.source)
        if epoch < pair.epoch:
            return
        if epoch > pair.epoch:
            pair.epoch, pair.fragments, pair.key_ids = epoch, {}, fitting.key_ids
        index = index_count >> 4
        if fitting.key_ids != pair.key_ids:
            return
        if pair.fragments.setdefault(index, data) is not data:
            if pair.fragments[index] != data:
                self._note_duplicate(pair)
            return
        pair.glance = masked ^ tag.glance_mask(fitting.glance_keys[epoch // layout.PERIOD], scent)
        glance = tag.glance_levels(pair.glance)
        self.events.append(Fragment(pair.incoming.pair, epoch, index, data, *glance, parsed.source, fitting.key_ids))

    def _note_replayed(self, pair: IncomingPair, source: bytes, epoch: int) -> None:
        """Note a sender whose own epochs rise while they are too old here: a second one, or somebody who replays."""
        before_source, before = pair.replayed
        if source == before_source and epoch > before:
            self._note_duplicate(pair)
        if source != before_source or epoch > before:
            pair.replayed = source, epoch

    def _note_duplicate(self, pair: IncomingPair) -> None:
        number = pair.incoming.pair
        self._duplicates[number] = self._duplicates.get(number, 0) + 1

    def _keep_recent(self, packet: bytes, parsed: ip.Parsed, pair: IncomingPair) -> None:
        """Keep the bytes on which the verdict depends. Only authentic packets get here, so nobody else can fill it.

        A dict compares by hash and memcmp, not in constant time. An attacker could learn from that whether bytes equal
        a scent, and a scent travels in clear anyway.
        """
        if self._recent_count >= MAX_FLOWS:
            self._forget()
        tcp = parsed.protocol == ip.TCP
        if parsed.version == 4 and parsed.scent_at == 22 and parsed.transport_at == _IPV4_END:
            delta = (ip.word_sum(packet[20:_IPV4_END]) - _NOPS_SUM) % 0xFFFF
            self._recent4[parsed.protocol][packet[12 : _IPV4_END + 4]] = delta, packet[12:20] + _NOPS, pair, tcp
        elif parsed.version == 6 and parsed.transport_at == _IPV6_END:
            delta = -(layout.IPV6_HEADER_LEN << 16) + ((parsed.protocol - ip.DESTINATION) << 8)
            self._recent6[packet[8 : _IPV6_END + 4]] = delta, pair, tcp
        self._recent_count += 1

    def _forget(self) -> None:
        if self._recent_count:
            for table in self._recent4:
                if table:
                    table.clear()
            self._recent6.clear()
            self._recent_count = 0

    def _absent(self, packet: bytes, parsed: ip.Parsed) -> Outcome:
        treatments = self._treatments.get(parsed.source) or self._table.default
        treatment = treatments.absent
        # A stamper may have left a large IPv6 datagram, or its fragments, unstamped. It has no such reason for TCP,
        # which is segmented and never fragmented, or for a small packet, which stays whole.
        in_parts = parsed.fragment or len(packet) > layout.PORTLESS_MIN
        if parsed.version == 6 and parsed.protocol != ip.TCP and in_parts:
            treatment = treatments.absent_ipv6_fragment
        return Outcome(layout.VERDICT_ABSENT, treatment, treatments.pair)

    def _named(self, scent: bytes, parsed: ip.Parsed) -> int:
        """The pair that a refused scent names."""
        known = self._by_key.get(scent[layout.SCENT_KEY_ID_AT :][:4], ())
        return next((pair.incoming.pair for pair, _ in known if pair.serves(parsed)), NO_PAIR)

    def _refuse(self, verdict: int, parsed: ip.Parsed, named: int = NO_PAIR) -> Outcome:
        """`named`: the pair that counts if several peers have the address."""
        treatments = self._treatments.get(parsed.source) or self._table.default
        return Outcome(verdict, treatments.rejected, named if treatments.pair == NO_PAIR else treatments.pair)
