"""The packets of tests/vectors/packets.json: what a stamper and a verifier make of each. For scripts/gen-vectors."""

import carriers
import wire_setup
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption, IPOption_RR, IPOption_SSRR
from scapy.layers.inet6 import (
    HBHOptUnknown,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    Pad1,
    PadN,
    RouterAlert,
)
from scapy.packet import Raw

from scentd.core.packet import stamp
from scentd.wire import ip, layout

A4, B4, C4, N4 = "192.0.2.7", "198.51.100.9", "203.0.113.5", "198.51.100.200"
A6, B6, C6, F6 = "2001:db8:a::7", "2001:db8:b::9", "2001:db8:c::5", "2001:db8:f::9"
PORTS = {"sport": 40000, "dport": 443}
DATA = Raw(b"payload!")
BEACON_INDEX = 7


def ip4(**changes):
    return IP(**{"src": A4, "dst": B4, "id": 7, "flags": "DF", **changes})


def ip6(**changes):
    return IPv6(**{"src": A6, "dst": B6, **changes})


def raw(size):
    return Raw(bytes(i & 0xFF for i in range(size)))


def tcp(**changes):
    return TCP(**{**PORTS, "seq": 1, "ack": 2, "flags": "A", **changes})


def udp(**changes):
    return UDP(**{**PORTS, **changes})


def options(size):
    """Foreign options (Record Route) that fill `size` bytes of an IPv4 header."""
    return [IPOption_RR(length=size, pointer=4, routers=["0.0.0.0"] * ((size - 3) // 4)), IPOption(b"\x01")]


def fragment(packet, offset, more):
    packet[IP].flags = "MF" if more else 0
    packet[IP].frag = offset
    return packet


STAMPED = [
    ("tcp4", "TCP over IPv4: the tag covers the ports", lambda: ip4() / tcp() / DATA),
    ("tcp4 no data", "a bare acknowledgement, the smallest TCP packet", lambda: ip4() / tcp()),
    ("tcp4 full", "grows to exactly the path's 1500 bytes", lambda: ip4() / tcp() / raw(1500 - 36 - 40)),
    ("tcp4 ecn", "the DSCP, ECN, TTL and identification bytes stay", lambda: ip4(tos=0xBB, ttl=3, id=65535) / tcp()),
    ("udp4", "UDP over IPv4", lambda: ip4(flags=0) / udp() / DATA),
    ("udp4 max portless", "grows past the path, may be fragmented: no ports in the tag",
     lambda: ip4(flags=0) / udp() / raw(1472)),
    ("sctp4", "SCTP has ports where TCP has them", lambda: ip4(proto=132) / Raw(b"\x9c\x40\x01\xbb" + bytes(12))),
    ("dccp4", "DCCP has ports, too", lambda: ip4(proto=33) / Raw(b"\x9c\x40\x01\xbb" + bytes(12))),
    ("icmp4", "ICMP has no ports to bind", lambda: ip4() / ICMP(id=1, seq=1) / DATA),
    ("gre4", "GRE: protocol 47, no ports", lambda: ip4(proto=47) / Raw(b"\0\0\x08\0" + bytes(16))),
    ("esp4", "ESP: protocol 50, no ports, though its SPI stands where they would", lambda: ip4(proto=50) / raw(24)),
    ("runt4", "TCP by its protocol, too short to have ports", lambda: ip4(proto=6) / Raw(b"\x9c\x40")),
    ("empty4", "nothing behind the header", lambda: ip4(proto=59)),
    ("first fragment4", "a fragment has no ports in its tag, not even the first",
     lambda: fragment(ip4() / udp(len=1200, chksum=0x1234) / raw(512), 0, True)),
    ("later fragment4", "a later fragment", lambda: fragment(ip4(proto=17) / raw(512), 65, True)),
    ("last fragment4", "the last fragment", lambda: fragment(ip4(proto=17) / raw(160), 130, False)),
    ("options4 room", "four bytes of foreign options: just room; ours goes before them",
     lambda: ip4(options=[IPOption(b"\x94\x04\0\0")]) / tcp() / DATA),
    ("foreign 158", "an option of our type that is not ours stays where it is",
     lambda: ip4(options=[IPOption(b"\x9e\x04ab")]) / tcp() / DATA),
    ("tcp6", "TCP over IPv6: the tag covers the ports", lambda: ip6() / tcp() / DATA),
    ("tcp6 full", "grows to exactly the path's 1500 bytes", lambda: ip6() / tcp() / raw(1500 - 40 - 60)),
    ("tcp6 class", "traffic class, flow label and hop limit stay", lambda: ip6(tc=0xBB, fl=0xFFFFF, hlim=2) / tcp()),
    ("udp6", "UDP over IPv6", lambda: ip6() / udp() / DATA),
    ("icmp6", "ICMPv6 has no ports", lambda: ip6() / ICMPv6EchoRequest(id=1, seq=1) / DATA),
    ("esp6", "ESP over IPv6", lambda: ip6(nh=50) / raw(24)),
    ("gre6", "GRE over IPv6", lambda: ip6(nh=47) / Raw(b"\0\0\x08\0" + bytes(16))),
    ("no next header", "IPv6 with nothing behind the header", lambda: ip6(nh=59)),
    ("hop by hop", "our header goes behind the Hop-by-Hop header",
     lambda: ip6() / IPv6ExtHdrHopByHop(options=[RouterAlert(value=0)]) / udp() / DATA),
    ("own destination options", "the packet's own Destination Options stay, behind ours",
     lambda: ip6() / IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=0x3E, optdata=b"ab")]) / udp() / DATA),
    ("foreign 0x1e", "an option of our type that is not ours stays where it is",
     lambda: ip6() / IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=0x1E, optdata=b"ab")]) / udp() / DATA),
    ("hop by hop and destination", "ours stands between the two",
     lambda: ip6() / IPv6ExtHdrHopByHop(options=[RouterAlert(value=0)])
     / IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=0x3E, optdata=b"ab")]) / tcp()),
    ("udp6 portless", "to be fragmented, and the peer verifies before defragmentation",
     lambda: ip6(dst=F6) / udp() / raw(1452)),
    ("fragment6", "a fragment, and the peer verifies before defragmentation",
     lambda: ip6(dst=F6) / IPv6ExtHdrFragment(nh=17, offset=0, m=1, id=5) / udp(len=1200, chksum=0x1234) / raw(512)),
    ("later fragment6", "a later fragment: what follows its header is not looked at",
     lambda: ip6(dst=F6) / IPv6ExtHdrFragment(nh=17, offset=65, m=0, id=5) / raw(512)),
    ("sender bound4", "bind = sender: the tag covers the scent alone", lambda: ip4(src=C4) / tcp() / DATA),
    ("sender bound6", "bind = sender over IPv6", lambda: ip6(src=C6) / udp() / DATA),
]  # fmt: skip

UNSTAMPED = [
    ("no profile", "the network has signed nothing", "no-profile", lambda: ip4(src="10.5.0.1") / tcp()),
    ("not our network", "a source that is nobody's network", "not-a-peer", lambda: ip4(src="10.9.0.1") / tcp()),
    ("not a peer", "a destination that is no peer", "not-a-peer", lambda: ip4(dst="10.9.0.1") / tcp()),
    ("no such pair", "a network and a peer that have nothing to do with each other", "not-a-peer",
     lambda: ip6(src=C6, dst=F6) / tcp()),
    ("no room", "eight bytes of options leave less than 36", "no-room", lambda: ip4(options=options(7)) / tcp()),
    ("source route", "the destination would change on the way", "no-room",
     lambda: ip4(options=[IPOption_SSRR(length=3, pointer=4, routers=[]), IPOption(b"\x01")]) / tcp()),
    ("too big4", "one byte more than fits, and DF", "too-big", lambda: ip4() / tcp() / raw(1500 - 36 - 40 + 1)),
    ("small path", "more than the path carries, but not more than 1280 with the scent", "too-big",
     lambda: ip4(dst=N4, flags=0) / udp() / raw(1180 - 28)),
    ("full fragment4", "a fragment with DF that does not fit with the scent", "too-big",
     lambda: IP(src=A4, dst=B4, flags="MF+DF", proto=17) / raw(1480)),
    ("too big6", "one byte more than fits", "too-big", lambda: ip6() / tcp() / raw(1500 - 40 - 60 + 1)),
    ("udp6 too big", "it would have to be fragmented behind us", "ipv6-fragment", lambda: ip6() / udp() / raw(1452)),
    ("fragment6 declined", "the peer cannot take fragments", "ipv6-fragment",
     lambda: ip6() / IPv6ExtHdrFragment(nh=17, offset=0, m=1, id=5) / udp(len=1200, chksum=0x1234) / raw(512)),
    ("full fragment6", "a fragment is not fragmented again", "too-big",
     lambda: ip6(dst=F6) / IPv6ExtHdrFragment(nh=17, offset=0, m=1, id=5) / raw(1448)),
    ("routing header", "a Routing header changes the destination on the way", "headers",
     lambda: ip6() / IPv6ExtHdrRouting(type=3, segleft=0, addresses=[]) / tcp()),
    ("eight headers", "with ours it would have nine extension headers", "headers",
     lambda: ip6() / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt()
     / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / tcp()),
    ("atomic fragment", "whole, but with a Fragment header: conntrack would take it for a fragment",
     "headers",
     lambda: ip6(dst=F6) / IPv6ExtHdrFragment(nh=6, offset=0, m=0, id=5) / tcp()),
    ("late hop by hop", "Hop-by-Hop in a wrong place", "headers",
     lambda: ip6() / IPv6ExtHdrDestOpt() / IPv6ExtHdrHopByHop() / tcp()),
    ("eight bytes of padding", "more padding in a row than receivers take", "malformed",
     lambda: ip6() / IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=0x3E, optdata=b"ab"), PadN(optdata=bytes(6)),
                                                Pad1(), Pad1()], autopad=0) / tcp()),
    ("wrong length4", "the length field does not say what there is", "malformed", lambda: ip4(len=41) / tcp()),
    ("wrong length6", "the length field does not say what there is", "malformed", lambda: ip6(plen=21) / tcp()),
    ("option overruns4", "an option ends behind the header", "malformed",
     lambda: ip4(options=[IPOption(b"\x94\x05\0\0")]) / tcp()),
]  # fmt: skip


def packets():
    """All vectors: stamped ones, unstamped ones, a flow of twelve packets, beacons."""
    stamped = [stamped_vector(name, sentence, bytes(make())) for name, sentence, make in STAMPED]
    unstamped = [unstamped_vector(name, sentence, reason, bytes(make())) for name, sentence, reason, make in UNSTAMPED]
    already = bytes.fromhex(stamped[0]["stamped"])
    unstamped.append(unstamped_vector("already4", "it has a scent", "already", already))
    six = bytes.fromhex(next(v for v in stamped if v["name"] == "tcp6")["stamped"])
    unstamped.append(unstamped_vector("already6", "it has a scent", "already", six))
    return {
        "setup": wire_setup.described(stamping=True, receiving=True) | {"beacon_index": BEACON_INDEX},
        "epoch": wire_setup.EPOCH,
        "now": wire_setup.NOW,
        "stamped": stamped,
        "unstamped": unstamped,
        "flows": [flow("tcp4", ip4() / tcp() / DATA), flow("tcp6", ip6() / tcp() / DATA)],
        "beacons": [beacon("beacon4", ip4(flags=0)), beacon("beacon6", ip6())],
    }


def stamped_vector(name, sentence, before):
    made = wire_setup.stamper().stamp(before)
    found = ip.parse(made)
    return {
        "name": name,
        "sentence": sentence,
        "before": before.hex(),
        "stamped": made.hex(),
        "stripped": carriers.strip(made, found).hex(),
        "removed": carriers.remove(made, found).hex(),
    }


def unstamped_vector(name, sentence, reason, packet):
    found = wire_setup.stamper().stamp(packet)
    assert layout.UNSTAMPED[found] == reason, (name, found)
    return {"name": name, "sentence": sentence, "packet": packet.hex(), "reason": reason}


def flow(name, packet):
    """The scents of the first packets of a flow: ten fragments, then each for a run."""
    one = wire_setup.stamper()
    made = [one.stamp(bytes(packet)) for _ in range(12)]
    return {"name": f"flow {name}", "sentence": "the first ten packets carry all fragments",
            "before": bytes(packet).hex(), "stamped": [m.hex() for m in made]}  # fmt: skip


def beacon(name, header):
    """An empty datagram to the beacon port."""
    before = bytes(header / UDP(sport=50000, dport=layout.BEACON_PORT))
    found = ip.parse(before)
    out = wire_setup.outgoing()[0]
    made = carriers.insert(before, found, stamp.build_scent(out, found, BEACON_INDEX, False, layout.FLAG_BEACON))
    return {"name": name, "sentence": "accepted and consumed", "before": before.hex(), "stamped": made.hex()}
