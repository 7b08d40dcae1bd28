"""The stamper: packets in, scented packets out. Pure: no socket, no clock.

The packet path is `Stamper.stamp`. For a flow and an epoch everything but the
packet's own bytes is constant (the scent, its tag, what it adds to the header
checksum), so it is computed once and kept; README.md of the wire has the format.
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct
from typing import Any

from scentd.core.packet import quote
from scentd.core.tables import StampPair, StampTable
from scentd.model import Outgoing
from scentd.prefix import PrefixMap
from scentd.wire import ip, layout, tag
from scentd.wire.carrier import CARRIERS, NATIVE, ipv4_option, ipv6_header

RUN = 16  # packets of a flow that share a fragment once every fragment has left: receivers merge equal headers
LEARNED_MIN = {4: 552, 16: 1280}  # by address length: Linux ip.route.min_pmtu; RFC 8200 section 5
MAX_FLOWS = 65536  # flows kept; beyond it all are forgotten and computed anew
IP_MAX = 65535  # bytes: what the length fields of both families hold
FRAGMENTED = 0xBFFF  # IPv4 flags and offset: all but "don't fragment" are zero in what is not a fragment

Flow = list[Any]  # what `_remember` puts there; a list, because reading it is the packet path

# The parts of a header that change, as numbers: one call reads them, one writes them back with what is new behind.
unpack_ipv4 = Struct(">QI").unpack_from  # version to fragment offset; TTL to checksum
unpack_ipv6 = Struct(">Q").unpack_from  # version to hop limit
_pack_ipv4 = Struct(f">QI{8 + layout.IPV4_OPTION_LEN}s").pack  # addresses and option
_pack_ipv6 = Struct(f">Q{32 + layout.IPV6_HEADER_LEN}s").pack  # addresses and extension header
_IPV4_GROWTH = ((layout.IPV4_OPTION_LEN // 4) << 56) + (layout.IPV4_OPTION_LEN << 32)
_IPV4_GROWTH_SUM = ((layout.IPV4_OPTION_LEN // 4) << 8) + layout.IPV4_OPTION_LEN


def scent(out: Outgoing, parsed: ip.Parsed, index: int, sender_bound: bool = False, flags: int = 0) -> bytes:
    """The 34 bytes of fragment `index` for a packet of this anatomy."""
    if sender_bound:
        flags |= layout.FLAG_SENDER
    elif parsed.ports:
        flags |= layout.FLAG_PORTS
    head = tag.head(flags, out.glance, out.key_id, out.epoch, index, out.fragments[index])
    return head + tag.compute(out.tag_key, head, parsed)


class OutgoingPair:
    """One pair's current epoch: which fragments have left and which is next."""

    __slots__ = ("before", "next", "outgoing", "pair", "sent")

    def __init__(self, pair: StampPair, outgoing: Outgoing, previous: OutgoingPair | None = None) -> None:
        """`previous` is what the pair sent until now: routers still complain of its packets."""
        self.pair = pair
        self.outgoing = outgoing
        self.before: tuple[int, bytes] | None = None  # (period, tag key), other than the current one
        if previous is not None:
            period = previous.outgoing.epoch // layout.PERIOD
            changed = period != outgoing.epoch // layout.PERIOD
            self.before = (period, previous.outgoing.tag_key) if changed else previous.before
        self.sent = 0  # bit i: fragment i has left
        self.next = 0

    def tag_key(self, epoch: int) -> bytes | None:
        """The key of an epoch's packets, if they left lately."""
        if not 0 <= self.outgoing.epoch - epoch <= quote.MAX_AGE:
            return None
        period = epoch // layout.PERIOD
        if period == self.outgoing.epoch // layout.PERIOD:
            return self.outgoing.tag_key
        return self.before[1] if self.before is not None and self.before[0] == period else None

    def take(self) -> tuple[int, int]:
        """(fragment index, for how many packets of a flow it may be used)."""
        index = self.next
        run = 1 if self.sent.bit_count() < layout.FRAGMENTS else RUN
        self.sent |= 1 << index
        self.next = (index + 1) % layout.FRAGMENTS
        return index, run


class Stamper:
    """Stamps packets by a table of pairs and their current epochs.

    `stamp` returns the scented packet, or a reason of layout.UNSTAMPED as an int:
    then the packet goes out as it is. `tick(now)` is called before a batch.
    """

    def __init__(self) -> None:
        self._by_number: dict[int, StampPair] = {}
        self._networks: PrefixMap[int] = PrefixMap()
        self._peers: PrefixMap[int] = PrefixMap()
        self._limits: PrefixMap[int] = PrefixMap()
        self._learned: dict[bytes, tuple[int, float]] = {}
        self._pairs: dict[tuple[int, int], StampPair] = {}
        self._sending: dict[int, OutgoingPair] = {}
        self._now = 0.0
        self._ipv4: list[dict[bytes, Flow]] = [{} for _ in range(256)]  # by protocol, then addresses and ports
        self._ipv6: list[dict[bytes, Flow]] = [{} for _ in range(256)]
        self._flows = 0

    def configure(self, table: StampTable) -> None:
        """Take a new table; epochs of pairs that stay are kept."""
        self._networks = PrefixMap(table.networks)
        self._peers = PrefixMap(table.peers)
        self._limits = PrefixMap(table.limits)
        self._pairs = {(p.network, p.peer): p for p in table.pairs}
        self._by_number = {p.pair: p for p in table.pairs}
        self._sending = {n: sending for n, sending in self._sending.items() if n in self._by_number}
        for number, sending in self._sending.items():
            sending.pair = self._by_number[number]
        self.forget_flows()

    def update(self, outgoing: Mapping[int, Outgoing]) -> None:
        """Begin new epochs, by pair. A pair that is not in the table is ignored."""
        for number, begun in outgoing.items():
            pair = self._by_number.get(number)
            if pair is not None:
                self._sending[number] = OutgoingPair(pair, begun, self._sending.get(number))
        self.forget_flows()

    def tick(self, now: float) -> None:
        """The time of the packets that follow, Unix seconds."""
        if int(now) != int(self._now):
            expired = [n for n, s in self._sending.items() if s.outgoing.expires <= now]
            for pair in expired:
                del self._sending[pair]
            if expired:
                self.forget_flows()
        self._now = now

    def learn_limit(self, destination: bytes, mtu: int, seconds: float = 600.0) -> None:
        """A router said that packets of more than `mtu` bytes do not pass (RFC 1191, RFC 8201: 10 minutes).

        What no router has is not believed: a replayed quotation would turn stamping off for the destination.
        """
        mtu = max(mtu, LEARNED_MIN[len(destination)])
        if mtu >= self.limit(destination):
            return  # nothing new: a replayed quotation costs us no flow
        if len(self._learned) >= MAX_FLOWS:
            self._learned.clear()
        self._learned[destination] = (mtu, self._now + seconds)
        self._forget_flows_to(destination)

    def unquote(self, packet: bytes, parsed: ip.Parsed) -> bytes | None:
        """An ICMP "too big" about a packet that we scented, as if we had not; its MTU is learned.

        Not from a sender-bound scent: whoever has seen one can quote it with any destination.
        """
        made = quote.unquote(packet, parsed, self._tag_key)
        if made is None:
            return None
        if made.flow_bound:
            self.learn_limit(made.destination, made.mtu)
        return made.packet

    def _tag_key(self, parsed: ip.Parsed, epoch: int) -> bytes | None:
        pair = self._pair(parsed)
        sending = None if pair is None else self._sending.get(pair.pair)
        return None if sending is None else sending.tag_key(epoch)

    def sent(self) -> list[tuple[int, int, int]]:
        """(pair, epoch, bits of the fragments that have left) of every pair."""
        return [(n, s.outgoing.epoch, s.sent) for n, s in self._sending.items()]

    def forget_flows(self) -> None:
        for table in (*self._ipv4, *self._ipv6):
            if table:
                table.clear()
        self._flows = 0

    def _forget_flows_to(self, destination: bytes) -> None:
        """A flow's key begins with its source and destination."""
        size = len(destination)
        for table in self._ipv4 if size == 4 else self._ipv6:
            gone = [key for key in table if key[size : 2 * size] == destination]
            for key in gone:
                del table[key]
            self._flows -= len(gone)

    def stamp(self, packet: bytes) -> bytes | int:
        """The packet with a scent, or a reason of layout.UNSTAMPED."""
        try:
            if packet[0] == 0x45:
                flow = self._ipv4[packet[9]].get(packet[12:24])
                if flow is not None and len(packet) <= flow[1]:
                    first, rest = unpack_ipv4(packet)
                    if not first & FRAGMENTED:
                        if flow[0]:
                            flow[0] -= 1
                        else:
                            self._next_run(flow)
                        # RFC 1624: the checksum goes down by what is added elsewhere, borrowing from 0xffff.
                        rest -= flow[3] if rest & 0xFFFF >= flow[3] else flow[3] - 0xFFFF
                        return _pack_ipv4(first + _IPV4_GROWTH, rest, flow[2]) + packet[20:]
            elif packet[0] >> 4 == 6:
                flow = self._ipv6[packet[6]].get(packet[8:44])
                if flow is not None and len(packet) <= flow[1]:
                    if flow[0]:
                        flow[0] -= 1
                    else:
                        self._next_run(flow)
                    return _pack_ipv6(unpack_ipv6(packet)[0] + flow[3], flow[2]) + packet[40:]
        except IndexError:  # shorter than its header; a try costs nothing, a check would
            return layout.UNSTAMPED_MALFORMED
        return self._stamp_new(packet)

    def _stamp_new(self, packet: bytes) -> bytes | int:
        parsed = ip.parse(packet)
        if parsed.malformed:
            return layout.UNSTAMPED_MALFORMED
        if parsed.scent_at:
            return layout.UNSTAMPED_ALREADY
        pair = self._pair(parsed)
        if pair is None:
            return layout.UNSTAMPED_NOT_A_PEER
        sending = self._sending.get(pair.pair)
        if sending is None or sending.outgoing.expires <= self._now:
            return layout.UNSTAMPED_NO_PROFILE
        carrier = CARRIERS[pair.carrier(parsed.version)]
        if carrier.place(parsed) is None:
            return layout.UNSTAMPED_NO_ROOM if parsed.version == 4 else layout.UNSTAMPED_HEADERS
        limit = self.limit(parsed.destination)
        reason, steady = self._bind(packet, parsed, pair, limit)
        if reason is not None:
            return reason
        index, run = sending.take()
        made = scent(sending.outgoing, parsed, index, sending.pair.sender_bound)
        if steady and parsed.ports:
            self._remember(parsed, sending, made, run, limit)
        return carrier.insert(packet, parsed, made)

    def _pair(self, parsed: ip.Parsed) -> StampPair | None:
        network, peer = self._networks.get(parsed.source), self._peers.get(parsed.destination)
        if network is None or peer is None:
            return None
        return self._pairs.get((network, peer))

    def limit(self, destination: bytes) -> int:
        """The longest packet that may leave for a destination, bytes."""
        limit = min(self._limits.get(destination) or IP_MAX, IP_MAX)
        learned = self._learned.get(destination)
        if learned is not None:
            if learned[1] > self._now:
                return min(limit, learned[0])
            del self._learned[destination]
        return limit

    def room(self, parsed: ip.Parsed) -> int:
        """The longest packet of this kind that still fits once it has its scent, bytes."""
        pair = self._pair(parsed)
        carrier = pair.carrier(parsed.version) if pair is not None else NATIVE[parsed.version]
        return self.limit(parsed.destination) - CARRIERS[carrier].overhead

    @staticmethod
    def _bind(packet: bytes, parsed: ip.Parsed, pair: StampPair, limit: int) -> tuple[int | None, bool]:
        """(a reason not to stamp or None, whether the flow's further packets are bound alike).

        Clears `parsed.ports` of a packet that will be fragmented behind us: the
        fragments carry the same scent, and only the first has ports.
        """
        grown = len(packet) + CARRIERS[pair.carrier(parsed.version)].overhead
        if parsed.version == 4:
            if grown <= limit:
                return None, not parsed.fragment
            if parsed.dont_fragment or grown > IP_MAX or (grown <= layout.PORTLESS_MIN and not parsed.fragment):
                return layout.UNSTAMPED_TOO_BIG, False
            parsed.ports = b""
            return None, False
        if grown <= limit and not parsed.fragment:
            return None, True
        if grown > IP_MAX or (grown > limit and (parsed.fragment or parsed.protocol == ip.TCP)):
            return layout.UNSTAMPED_TOO_BIG, False
        if not pair.ipv6_fragments or (grown <= layout.PORTLESS_MIN and not parsed.fragment):
            return layout.UNSTAMPED_IPV6_FRAGMENT, False
        parsed.ports = b""
        return None, False

    def _remember(self, parsed: ip.Parsed, sending: OutgoingPair, made: bytes, run: int, limit: int) -> None:
        """Keep what is constant for the flow's next packets; the caller used one of the run.

        Only what `stamp` writes by hand: packets without options or extension headers, in their own version's carrier.
        """
        if self._flows >= MAX_FLOWS:
            self.forget_flows()
        self._flows += 1
        if parsed.version == 4 and parsed.transport_at == 20 and sending.pair.carrier4 == "ipv4-option":
            # left of the run, longest packet, addresses and option, what the checksum loses, ...
            flow: Flow = [run - 1, limit - layout.IPV4_OPTION_LEN, b"", 0, sending, parsed]
            self._ipv4[parsed.protocol][parsed.source + parsed.destination + parsed.ports] = flow
        elif parsed.version == 6 and parsed.transport_at == 40 and sending.pair.carrier6 == "ipv6-header":
            # left of the run, longest packet, addresses and extension header, what the header gains, ...
            delta = (layout.IPV6_HEADER_LEN << 16) + ((ip.DESTINATION - parsed.protocol) << 8)
            flow = [run - 1, limit - layout.IPV6_HEADER_LEN, b"", delta, sending, parsed]
            self._ipv6[parsed.protocol][parsed.source + parsed.destination + parsed.ports] = flow
        else:
            return
        self._fill(flow, made)

    def _next_run(self, flow: Flow) -> None:
        """The flow's next fragment, for the packet at hand and the run behind it."""
        sending, parsed = flow[-2:]
        index, run = sending.take()
        flow[0] = run - 1
        self._fill(flow, scent(sending.outgoing, parsed, index, sending.pair.sender_bound))

    @staticmethod
    def _fill(flow: Flow, made: bytes) -> None:
        """Put what follows from a scent into the flow's entry."""
        parsed = flow[-1]
        addresses = parsed.source + parsed.destination
        if parsed.version == 6:
            flow[2] = addresses + ipv6_header(parsed.protocol, made)
            return
        option = ipv4_option(made)
        flow[2] = addresses + option
        flow[3] = ip.word_sum(_IPV4_GROWTH_SUM.to_bytes(2, "big") + option)
