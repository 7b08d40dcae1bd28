"""The stamper: packets in, scented packets out. Pure: no socket, no clock.

The packet path is `Stamper.stamp`. For one flow and one epoch the scent, its tag and the change of the header
checksum are constant, so the stamper computes them once and keeps them. scentd/wire/README.md has the format.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from struct import Struct
from typing import Any

from scentd.core.packet import mss, quote
from scentd.core.packet.outgoing_pair import OutgoingPair
from scentd.core.tables import INTERFACE, StampPair, StampTable
from scentd.model import Outgoing
from scentd.prefix import PrefixMap
from scentd.wire import ip, layout, tag
from scentd.wire.carrier import CARRIERS, NATIVE, ipv4_option, ipv6_header
from scentd.wire.maps import NO_PAIR

LEARNED_MTU_MIN = {4: 552, 16: 1280}  # by address length: Linux ip.route.min_pmtu; RFC 8200 section 5
MAX_FLOWS = 65536  # flows kept; one more, and the stamper forgets them all and computes them anew
IP_MAX = 65535  # bytes: the most that the length field of either IP version can hold
IPV4_FRAGMENT_BITS = 0xBFFF  # IPv4 flags and offset without "don't fragment": a packet that is no fragment has none set

Flow = list[Any]  # the entry of a flow, which `_remember` writes; a list, because the packet path reads it
Flows = list[dict[bytes, Flow]] | defaultdict[int, dict[bytes, Flow]]  # by protocol, then addresses and ports

# The parts of a header that change, as numbers. One call reads them; one call writes them back, with the scent behind.
unpack_ipv4 = Struct(">QI").unpack_from  # version to fragment offset; TTL to checksum
unpack_ipv6 = Struct(">Q").unpack_from  # version to hop limit
_pack_ipv4 = Struct(f">QI{8 + layout.IPV4_OPTION_LEN}s").pack  # addresses and option
_pack_ipv6 = Struct(f">Q{32 + layout.IPV6_HEADER_LEN}s").pack  # addresses and extension header
_IPV4_GROWTH = ((layout.IPV4_OPTION_LEN // 4) << 56) + (layout.IPV4_OPTION_LEN << 32)
_IPV4_GROWTH_SUM = ((layout.IPV4_OPTION_LEN // 4) << 8) + layout.IPV4_OPTION_LEN


def build_scent(out: Outgoing, parsed: ip.Parsed, index: int, sender_bound: bool = False, flags: int = 0) -> bytes:
    """The scent, 34 bytes, with fragment `index` for the packet that was parsed."""
    if sender_bound:
        flags |= layout.FLAG_SENDER
    elif parsed.ports:
        flags |= layout.FLAG_PORTS
    head = tag.head(flags, out.glances[index], out.key_id, out.epoch, index, out.fragments[index])
    return head + tag.compute(out.tag_key, head, parsed)


class Stamper:
    """Stamps packets by a table of pairs and their current epochs.

    `stamp` returns the scented packet, or a reason of layout.UNSTAMPED as an int: then the packet goes out as it is.
    The caller sets the time with `tick(now)` before each batch of packets. If the table `has_origins`, it says with
    `come_from` where each packet comes from.
    """

    def __init__(self) -> None:
        self._by_number: dict[int, StampPair] = {}
        self._networks: PrefixMap[int] = PrefixMap()
        self._peers: PrefixMap[int] = PrefixMap()
        self._limits: PrefixMap[int] = PrefixMap()
        self._learned_mtus: dict[bytes, tuple[int, float]] = {}
        self._newly_learned: dict[bytes, int] = {}  # since the last drain
        self._pairs: dict[tuple[int, int], StampPair] = {}
        self._outgoing_pairs: dict[int, OutgoingPair] = {}
        self._now = 0.0
        self._ipv4: Flows = [{} for _ in range(256)]
        self._ipv6: Flows = [{} for _ in range(256)]
        self._flows = 0
        self._origins: list[tuple[int, dict[int, int]]] = []  # mask, network by value
        self._have_origin: set[int] = set()
        self._origin: int | None = None  # the network of the next packet, if its origin says it
        # By network: packets of several may have the same addresses. None: of those whom their source tells apart.
        self._flows_of: dict[int | None, tuple[Flows, Flows]] = {None: (self._ipv4, self._ipv6)}
        self._by_key: dict[tuple[int, bytes], int] = {}  # peer, key id -> pair of a network that has an origin

    def configure(self, table: StampTable) -> None:
        """Take a new table. Pairs that are in the old and the new table keep their epochs."""
        self._networks = PrefixMap(table.networks)
        self._peers = PrefixMap(table.peers)
        self._limits = PrefixMap(table.limits)
        self._pairs = {(p.network, p.peer): p for p in table.pairs}
        self._by_number = {p.pair: p for p in table.pairs}
        self._outgoing_pairs = {n: p for n, p in self._outgoing_pairs.items() if n in self._by_number}
        for number, outgoing_pair in self._outgoing_pairs.items():
            outgoing_pair.pair = self._by_number[number]
        by_mask: dict[int, dict[int, int]] = {}
        for origin in table.origins:
            by_mask.setdefault(origin.mask, {})[origin.value] = origin.network
        self._origins = list(by_mask.items())
        self._have_origin = {origin.network for origin in table.origins}
        self._by_key = {key: pair for key, pair in self._by_key.items() if pair in self._by_number}
        self.forget_flows()

    @property
    def has_origins(self) -> bool:
        return bool(self._origins)

    @property
    def is_by_origin(self) -> bool:
        """Whether the packet's network is told by where it comes from, and others may have its addresses, too."""
        return self._origin is not None

    def come_from(self, interface: int, mark: int) -> None:
        """Say by which interface the next packet came, 0 for one of this host, and which mark it has."""
        network = None
        for mask, networks in self._origins:
            network = networks.get(interface if mask == INTERFACE else mark & mask)
            if network is not None:
                break
        if network != self._origin:
            self._origin = network
            if network not in self._flows_of:
                self._flows_of[network] = defaultdict(dict), defaultdict(dict)
            self._ipv4, self._ipv6 = self._flows_of[network]

    def update(self, outgoing: Mapping[int, Outgoing]) -> None:
        """Begin new epochs, by pair. Numbers that are not in the table are ignored."""
        for number, epoch in outgoing.items():
            pair = self._by_number.get(number)
            if pair is not None:
                self._outgoing_pairs[number] = OutgoingPair(pair, epoch, self._outgoing_pairs.get(number))
                if pair.network in self._have_origin:
                    self._by_key[pair.peer, epoch.key_id] = number
        self.forget_flows()

    def tick(self, now: float) -> None:
        """Set the time of the packets that follow, Unix seconds."""
        if int(now) != int(self._now):
            expired = [n for n, p in self._outgoing_pairs.items() if p.outgoing.expires <= now]
            for pair in expired:
                del self._outgoing_pairs[pair]
            if expired:
                self.forget_flows()
        self._now = now

    def learn_limit(self, destination: bytes, mtu: int, seconds: float = 600.0) -> None:
        """Learn from a router that packets of more than `mtu` bytes do not pass (RFC 1191, RFC 8201: 10 minutes).

        An MTU below LEARNED_MTU_MIN counts as LEARNED_MTU_MIN: no router has a lower one, and with a lower one a
        replayed quotation could turn stamping off for the destination.
        """
        mtu = max(mtu, LEARNED_MTU_MIN[len(destination)])
        if mtu >= self.limit(destination):
            return  # the limit stays, so the flows stay: a replayed quotation cannot make us forget them
        if len(self._learned_mtus) >= MAX_FLOWS:
            self._learned_mtus.clear()
            self._newly_learned.clear()
        self._learned_mtus[destination] = (mtu, self._now + seconds)
        self._newly_learned[destination] = mtu
        self._forget_flows_to(destination)

    def drain_learned(self) -> dict[bytes, int]:
        """The MTUs that routers have told since the last drain, by destination; other paths do not know them."""
        drained, self._newly_learned = self._newly_learned, {}
        return drained

    def unquote(self, packet: bytes, parsed: ip.Parsed) -> bytes | None:
        """Rewrite an ICMP "too big" about a packet that we scented, as if we had not, and learn its MTU.

        Returns None for any other packet. The stamper learns no MTU from a sender-bound scent: anybody who has seen
        such a scent can quote it with any destination.
        """
        error = quote.unquote(packet, parsed, self._tag_key)
        if error is None:
            return None
        if error.flow_bound:
            self.learn_limit(error.destination, error.mtu)
        return error.packet

    def _tag_key(self, parsed: ip.Parsed, epoch: int, key_id: bytes) -> bytes | None:
        """The key of a quoted packet. Of where it came from only its key id is left."""
        peer = self._peers.get(parsed.destination)
        if peer is None:
            return None
        pair = self._pair_between(parsed.source, parsed.destination)
        number = self._by_key.get((peer, key_id)) if pair is None else pair.pair
        outgoing_pair = None if number is None else self._outgoing_pairs.get(number)
        return None if outgoing_pair is None else outgoing_pair.tag_key(epoch)

    def fragments_sent(self) -> list[tuple[int, int, int]]:
        """(pair, epoch, bits of the fragments that have left) of every pair."""
        return [(n, p.outgoing.epoch, p.fragment_bits) for n, p in self._outgoing_pairs.items()]

    def forget_flows(self) -> None:
        own = self._flows_of[None]
        for table in (*own[0], *own[1]):  # lists: these are never defaultdicts
            if table:
                table.clear()
        self._flows_of = {None: own}
        self._ipv4, self._ipv6 = own
        self._origin = None
        self._flows = 0

    def _forget_flows_to(self, destination: bytes) -> None:
        """Forget the flows to a destination. The key of a flow begins with its source and its destination."""
        size = len(destination)
        for flows in self._flows_of.values():
            by_protocol = flows[0 if size == 4 else 1]
            for table in by_protocol.values() if isinstance(by_protocol, dict) else by_protocol:
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
                    if not first & IPV4_FRAGMENT_BITS and (packet[9] != ip.TCP or not packet[33] & mss.SYN):
                        if flow[0]:
                            flow[0] -= 1
                        else:
                            self._next_run(flow)
                        # RFC 1624: the checksum goes down by the sum of the added words, and borrows from 0xffff.
                        rest -= flow[3] if rest & 0xFFFF >= flow[3] else flow[3] - 0xFFFF
                        return _pack_ipv4(first + _IPV4_GROWTH, rest, flow[2]) + packet[20:]
            elif packet[0] >> 4 == 6:
                flow = self._ipv6[packet[6]].get(packet[8:44])
                if flow is not None and len(packet) <= flow[1] and (packet[6] != ip.TCP or not packet[53] & mss.SYN):
                    if flow[0]:
                        flow[0] -= 1
                    else:
                        self._next_run(flow)
                    return _pack_ipv6(unpack_ipv6(packet)[0] + flow[3], flow[2]) + packet[40:]
        except IndexError:  # the packet is shorter than its headers; a try costs nothing, a check of the length would
            pass
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
        outgoing_pair = self._outgoing_pairs.get(pair.pair)
        if outgoing_pair is None or outgoing_pair.outgoing.expires <= self._now:
            return layout.UNSTAMPED_NO_PROFILE
        carrier = CARRIERS[pair.carrier(parsed.version)]
        if carrier.place(parsed) is None:
            return layout.UNSTAMPED_NO_ROOM if parsed.version == 4 else layout.UNSTAMPED_HEADERS
        limit = self.limit(parsed.destination)
        reason, steady = self._bind(packet, parsed, pair, limit)
        if reason is not None:
            return reason
        index, run = outgoing_pair.take()
        scent = build_scent(outgoing_pair.outgoing, parsed, index, outgoing_pair.pair.sender_bound)
        if steady and parsed.ports:
            self._remember(parsed, outgoing_pair, scent, run, limit)
        return carrier.insert(self.make_room(packet, parsed, pair), parsed, scent)

    def make_room(self, packet: bytes, parsed: ip.Parsed, pair: StampPair | None = None) -> bytes:
        """The packet; a SYN between a network and its peer announces no longer segment than fits the path with a scent.

        The SYN that this end sends limits what the peer sends; the one that the peer sends limits what this end sends.
        `pair`: whose packet it is, if its addresses do not say it.
        """
        if not mss.is_syn(packet, parsed):
            return packet
        there = pair or self._pair_between(parsed.source, parsed.destination)
        back = self._pair_between(parsed.destination, parsed.source)
        for found, destination in ((there, parsed.destination), (back, parsed.source)):
            if found is not None:
                room = self.limit(destination) - CARRIERS[found.carrier(parsed.version)].overhead
                packet = mss.lower(packet, parsed, mss.longest_segment(parsed.version, room))
        return packet

    def _pair(self, parsed: ip.Parsed) -> StampPair | None:
        """The pair of a packet that leaves: by where it comes from, or else by its addresses."""
        if self._origin is None:
            return self._pair_between(parsed.source, parsed.destination)
        peer = self._peers.get(parsed.destination)
        return None if peer is None else self._pairs.get((self._origin, peer))

    def _pair_between(self, source: bytes, destination: bytes) -> StampPair | None:
        network, peer = self._networks.get(source), self._peers.get(destination)
        if network is None or peer is None:
            return None
        return self._pairs.get((network, peer))

    def pair_of(self, parsed: ip.Parsed) -> int:
        """The number of the pair to which an unstamped packet belongs, or NO_PAIR."""
        pair = None if parsed.malformed else self._pair(parsed)
        return NO_PAIR if pair is None else pair.pair

    def limit(self, destination: bytes) -> int:
        """The longest packet that may leave for a destination, bytes."""
        limit = min(self._limits.get(destination) or IP_MAX, IP_MAX)
        learned = self._learned_mtus.get(destination)
        if learned is not None:
            if learned[1] > self._now:
                return min(limit, learned[0])
            del self._learned_mtus[destination]
        return limit

    def unscented_limit(self, parsed: ip.Parsed) -> int:
        """The greatest length at which a packet to this destination still fits the path with its scent, bytes."""
        pair = self._pair(parsed)
        carrier = pair.carrier(parsed.version) if pair is not None else NATIVE[parsed.version]
        return self.limit(parsed.destination) - CARRIERS[carrier].overhead

    @staticmethod
    def _bind(packet: bytes, parsed: ip.Parsed, pair: StampPair, limit: int) -> tuple[int | None, bool]:
        """(a reason to leave the packet unstamped or None, whether the flow's next packets are bound alike).

        Clears `parsed.ports` if the packet will be fragmented behind the stamper: all fragments carry the same scent,
        and only the first fragment has ports.
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

    def _remember(self, parsed: ip.Parsed, outgoing_pair: OutgoingPair, scent: bytes, run: int, limit: int) -> None:
        """Keep the flow's constants for its next packets. The caller has used one packet of the run.

        Only the forms that `stamp` writes by hand have entries: packets without options or extension headers, in the
        native carrier of their IP version.
        """
        if self._flows >= MAX_FLOWS:
            self.forget_flows()
        self._flows += 1
        if parsed.version == 4 and parsed.transport_at == 20 and outgoing_pair.pair.carrier4 == "ipv4-option":
            # packets left of the run, longest packet, addresses and option, loss of the checksum, ...
            flow: Flow = [run - 1, limit - layout.IPV4_OPTION_LEN, b"", 0, outgoing_pair, parsed]
            self._ipv4[parsed.protocol][parsed.source + parsed.destination + parsed.ports] = flow
        elif parsed.version == 6 and parsed.transport_at == 40 and outgoing_pair.pair.carrier6 == "ipv6-header":
            # packets left of the run, longest packet, addresses and extension header, gain of the header, ...
            delta = (layout.IPV6_HEADER_LEN << 16) + ((ip.DESTINATION - parsed.protocol) << 8)
            flow = [run - 1, limit - layout.IPV6_HEADER_LEN, b"", delta, outgoing_pair, parsed]
            self._ipv6[parsed.protocol][parsed.source + parsed.destination + parsed.ports] = flow
        else:
            return
        self._fill(flow, scent)

    def _next_run(self, flow: Flow) -> None:
        """Put the pair's next fragment into the flow's entry, for this packet and for the run that follows."""
        outgoing_pair, parsed = flow[-2:]
        index, run = outgoing_pair.take()
        flow[0] = run - 1
        self._fill(flow, build_scent(outgoing_pair.outgoing, parsed, index, outgoing_pair.pair.sender_bound))

    @staticmethod
    def _fill(flow: Flow, scent: bytes) -> None:
        """Put a scent, in the form in which `stamp` writes it, into the flow's entry."""
        parsed = flow[-1]
        addresses = parsed.source + parsed.destination
        if parsed.version == 6:
            flow[2] = addresses + ipv6_header(parsed.protocol, scent)
            return
        option = ipv4_option(scent)
        flow[2] = addresses + option
        flow[3] = ip.word_sum(_IPV4_GROWTH_SUM.to_bytes(2, "big") + option)
