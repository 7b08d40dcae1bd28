"""The packets of tests/vectors/rejected.json: each verdict, and each way to be malformed. For scripts/gen-vectors."""

import carriers
import wire_setup
from packet_vectors import C4, C6, DATA, F6, fragment, ip4, ip6, raw, tcp, udp
from scapy.layers.inet import ICMP, IPOption, IPOption_SSRR
from scapy.layers.inet6 import (
    HBHOptUnknown,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    Pad1,
    PadN,
)
from scapy.packet import Raw

from scentd.wire import ip, layout, tag
from scentd.wire.scapy_layer import IPOption_Scent, IPv6Option_Scent

EPOCH, NOW = wire_setup.EPOCH, wire_setup.NOW
OURS = {name: wire_setup.IDENTITIES[name].public.key_id for name in wire_setup.NAMES}
FLAGS = {"flags": layout.FLAG_PORTS}


def insert(packet, sender="alice", receiver="bob", key=None, **fields):
    """A packet with a scent of any fields, wrong ones included, and the tag that fits them."""
    packet = bytes(packet)
    found = ip.parse(packet)
    flags = fields.get("flags", layout.FLAG_PORTS)
    epoch = fields.get("epoch", EPOCH)
    given = {"key_id": OURS[sender], "epoch": epoch, "glance": 0x5A, "data": bytes(range(13)), **fields}
    bare = bytes(IPv6Option_Scent(**{**given, "flags": flags}))[2:]
    found.ports = found.ports or bytes(4)
    made = tag.compute(key or wire_setup.keys_of(sender, receiver, epoch).tag, bare[: layout.TAGGED_LEN], found)
    return carriers.insert(packet, found, bare[: layout.TAGGED_LEN] + made)


def flip(packet, at, bits=1):
    """One byte changed, the IPv4 header checksum mended as a router would."""
    made = bytearray(packet)
    made[at] ^= bits
    return mend(bytes(made))


def mend(packet):
    if packet[0] >> 4 != 4:
        return packet
    header = bytearray(packet[: (packet[0] & 15) * 4])
    header[10:12] = b"\0\0"
    header[10:12] = ip.checksum(bytes(header)).to_bytes(2, "big")
    return bytes(header) + packet[len(header) :]


def scent4(**fields):
    """A scapy option with a right tag for ip4() / tcp()."""
    whole = insert(ip4() / tcp(), **fields)
    return whole[20:56]


def scent6(**fields):
    """The 36 bytes of a scapy option with a right tag for ip6() / tcp()."""
    return insert(ip6() / tcp(), **fields)[42:78]


def chain(count):
    """IPv6 and so many Destination Options headers."""
    packet = ip6()
    for _ in range(count):
        packet /= IPv6ExtHdrDestOpt()
    return packet


NOTHING = HBHOptUnknown(otype=0x3E, optdata=b"")  # two bytes, and no padding


def opt6(data):
    return HBHOptUnknown(otype=data[0], optlen=data[1], optdata=data[2:])


def absent():
    four, six = scent4(), scent6()
    foreign, foreign_pair = IPv6Option_Scent(magic=0x5CE8), HBHOptUnknown(otype=0x3E, optdata=bytes(1))
    return [
        ("plain4", "no scent", ip4() / tcp()),
        ("plain6", "no scent", ip6() / tcp()),
        ("empty option4", "our type, no content", ip4(options=[IPOption(b"\x9e\x02\x01\x01")]) / tcp()),
        ("half magic4", "an option of our type with one byte of our magic",
         ip4(options=[IPOption(b"\x9e\x03\x5c\x01")]) / tcp()),
        ("foreign magic4", "our type and length, another's magic",
         ip4(options=[IPOption_Scent(magic=0x5CE8)]) / tcp()),
        ("behind the end4", "behind an End of Option List nothing is an option", end_of_list(four)),
        ("inside another4", "our bytes as the content of a foreign option",
         ip4(options=[IPOption(b"\x88\x26" + four + b"\x01\x01")]) / tcp()),
        ("foreign magic6", "our type, another's magic", ip6() / IPv6ExtHdrDestOpt(options=[foreign]) / tcp()),
        ("short foreign6", "our type, another's content",
         ip6() / IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=0x1E, optdata=b"\x5c")]) / tcp()),
        ("in hop by hop", "a scent is a destination option: elsewhere it is nothing",
         ip6() / IPv6ExtHdrHopByHop(options=[opt6(six)]) / tcp()),
        ("inside another6", "our bytes as the content of a foreign option",
         ip6() / IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=0x3E, optdata=six)]) / tcp()),
        ("in the payload", "our bytes as data", ip6() / udp() / Raw(six)),
        ("in a routing header", "only Destination Options are walked: a Routing header's content is not looked at",
         ip6(nh=43) / Raw(b"\x06\x04\x1e\x22" + six[2:] + b"\x01\0") / tcp()),
        ("foreign in the fragment", "options behind a first fragment's header are walked; a foreign one is nothing",
         ip6() / IPv6ExtHdrFragment(nh=60, offset=0, m=1)
         / IPv6ExtHdrDestOpt(nh=17, options=[foreign]) / udp(len=1200, chksum=1)),
        ("small fragment of carol", "an IPv6 fragment that is not TCP has a treatment of its own, however small",
         ip6(src=C6) / IPv6ExtHdrFragment(nh=17, offset=8, m=0) / raw(8)),
        ("large udp of carol", "so has what was perhaps a fragment: not TCP, over 1280 bytes",
         ip6(src=C6) / udp() / raw(1281 - 48)),
        ("small udp of carol", "not what came whole", ip6(src=C6) / udp() / raw(1280 - 48)),
        ("atomic fragment of carol", "nor an atomic fragment, which is whole, too",
         ip6(src=C6) / IPv6ExtHdrFragment(nh=17, offset=0, m=0) / udp()),
        ("tcp fragment of carol", "nor TCP, which is never fragmented",
         ip6(src=C6) / IPv6ExtHdrFragment(nh=6, offset=0, m=1) / tcp() / raw(4)),
        ("large tcp of carol", "nor large TCP", ip6(src=C6) / tcp() / raw(1400)),
        ("seven bytes of padding", "as much padding in a row as is taken",
         ip6() / IPv6ExtHdrDestOpt(options=[foreign_pair, PadN(optdata=bytes(5)), NOTHING, PadN(optdata=b"")],
                                   autopad=0) / tcp()),
        ("eight options", "as many options in one header as are walked",
         ip6() / IPv6ExtHdrDestOpt(options=[NOTHING] * 7 + [HBHOptUnknown(otype=0x3E, optdata=bytes(6))],
                                   autopad=0) / tcp()),
        ("later fragment6", "what follows a later fragment's header is data, whatever it looks like",
         ip6() / IPv6ExtHdrFragment(nh=60, offset=8, m=0) / Raw(b"\x06\x04" + six + b"\x01\x00")),
    ]  # fmt: skip


def end_of_list(option):
    packet = bytearray(bytes(ip4(options=[IPOption(b"\x01" * 40)]) / tcp()))
    packet[20] = 0
    packet[24:60] = option
    return mend(bytes(packet))


def malformed4():
    four = scent4()
    whole = insert(ip4() / tcp() / DATA)
    short = bytes((158, 8)) + four[2:8]
    return [
        ("empty", "no bytes", b""),
        ("version 5", "neither IPv4 nor IPv6", b"\x50" + whole[1:]),
        ("one byte short4", "cut", whole[:-1]),
        ("one byte more4", "a byte behind the packet", whole + b"\0"),
        ("header of 16 bytes", "a header length below 20", mend(b"\x44" + whole[1:])),
        ("long header", "a header length behind the packet's end", b"\x4f" + bytes(ip4())[1:]),
        ("option length 0", "an option that ends before it begins", ip4(options=[IPOption(b"\x94\x00\0\0")]) / tcp()),
        ("option overruns", "an option that ends behind the header", ip4(options=[IPOption(b"\x94\x08\0\0")]) / tcp()),
        ("option cut", "a type without its length", ip4(options=[IPOption(b"\x01\x01\x01\x94")]) / tcp()),
        ("short scent4", "our magic in an option of 8 bytes", ip4(options=[IPOption(short)]) / tcp()),
        ("long scent4", "our magic in an option of 40 bytes",
         ip4(options=[IPOption(bytes((158, 40)) + four[2:] + bytes(4))]) / tcp()),
        ("scent and stump4", "a scent, and our magic once more",
         ip4(options=[IPOption(four), IPOption(b"\x9e\x04\x5c\xe7")]) / tcp()),
        ("source routed scent", "no stamper scents a source-routed packet",
         ip4(options=[IPOption(four), IPOption_SSRR(length=3, pointer=4, routers=[]), IPOption(b"\x01")]) / tcp()),
        ("reserved flag", "the fourth flag bit is zero in version 1", insert(ip4() / tcp(), flags=9)),
        ("count 9", "a profile has ten fragments", insert(ip4() / tcp(), count=9)),
        ("index 10", "fragments are numbered 0 to 9", insert(ip4() / tcp(), index=10)),
    ]  # fmt: skip


def malformed6():
    six = scent6()
    whole = insert(ip6() / tcp() / DATA)
    ours = IPv6ExtHdrDestOpt(options=[opt6(six)])
    foreign = HBHOptUnknown(otype=0x3E, optdata=b"ab")
    pads = IPv6ExtHdrDestOpt(options=[opt6(six), Pad1(), Pad1()], autopad=0)
    return [
        ("one byte short6", "cut", whole[:-1]),
        ("one byte more6", "a byte behind the packet", whole + b"\0"),
        ("no header6", "a Destination Options header is announced and not there", ip6(nh=60)),
        ("header overruns6", "an extension header that ends behind the packet", ip6(nh=60) / Raw(b"\x06\x04" + six)),
        ("option overruns6", "an option that ends behind its header",
         ip6() / IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=0x3E, optlen=5, optdata=b"abcd")], autopad=0) / tcp()),
        ("option cut6", "a type without its length",
         ip6(nh=60) / Raw(b"\x06\x00\x01\x03\0\0\0\x3e") / tcp()),
        ("short scent6", "our magic in an option of 4 bytes",
         ip6() / IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=0x1E, optdata=six[2:6])]) / tcp()),
        ("scent of 33 bytes", "a scent of another length",
         ip6() / IPv6ExtHdrDestOpt(options=[opt6(b"\x1e\x21" + six[2:-1]), PadN(optdata=b"\0")]) / tcp()),
        ("padded with Pad1", "canonical padding is one PadN", ip6() / pads / tcp()),
        ("padding is an option", "an empty option of type 0x3e in the padding's place", flip(whole, 40 + 38, 0x3F)),
        ("padding first", "the scent stands first in its header",
         ip6() / IPv6ExtHdrDestOpt(options=[Pad1(), Pad1(), opt6(six)], autopad=0) / tcp()),
        ("nested", "a scent beside another's option", ip6() / IPv6ExtHdrDestOpt(options=[opt6(six), foreign]) / tcp()),
        ("nested last", "a scent behind another's option",
         ip6() / IPv6ExtHdrDestOpt(options=[foreign, opt6(six)]) / tcp()),
        ("two scents6", "two headers with a scent", ip6() / ours / ours / tcp()),
        ("second header", "a scent in the second Destination Options header",
         ip6() / IPv6ExtHdrDestOpt(options=[foreign]) / ours / tcp()),
        ("behind the fragment header", "a scent in the fragmentable part",
         ip6() / IPv6ExtHdrFragment(nh=60, offset=0, m=0) / ours / tcp()),
        ("in a first fragment", "the same in the first of several",
         ip6() / IPv6ExtHdrFragment(nh=60, offset=0, m=1) / ours / tcp()),
        ("pad1 in a row", "eight bytes of Pad1", ip6() / IPv6ExtHdrDestOpt(options=[NOTHING] + [Pad1()] * 8 + [NOTHING],
                                                                           autopad=0) / tcp()),
        ("padn too long", "one PadN of eight bytes",
         ip6() / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(6)), NOTHING, NOTHING, NOTHING], autopad=0) / tcp()),
        ("padding behind the scent", "eight bytes of padding in a second header behind a right scent",
         ip6() / ours / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(6)), NOTHING, NOTHING, NOTHING], autopad=0)
         / tcp()),
        ("nine options", "more options in one header than are walked",
         ip6() / IPv6ExtHdrDestOpt(options=[NOTHING] * 8 + [HBHOptUnknown(otype=0x3E, optdata=bytes(4))],
                                   autopad=0) / tcp()),
        ("with a routing header", "no stamper scents a packet with a Routing header",
         ip6() / ours / IPv6ExtHdrRouting(type=3, segleft=0, addresses=[]) / tcp()),
        ("behind a routing header", "the same, behind it",
         ip6() / IPv6ExtHdrRouting(type=3, segleft=0, addresses=[]) / ours / tcp()),
        ("hop by hop behind", "Hop-by-Hop stands first or not at all", ip6() / ours / IPv6ExtHdrHopByHop() / tcp()),
        ("nine headers", "more extension headers than are walked",
         insert(chain(8) / tcp())),
    ]  # fmt: skip


def refused():
    """(name, sentence, verdict, packet) of well-formed packets that are not accepted."""
    four, six = insert(ip4() / tcp() / DATA), insert(ip6() / tcp() / DATA)
    own, sender, nothing = layout.FLAG_PORTS, layout.FLAG_SENDER, 0
    binding, bad, wrong = "wrong-binding", "bad-tag", "wrong-address"
    backward = wire_setup.keys_of("bob", "alice", EPOCH).tag
    other_pair = wire_setup.keys_of("alice", "frank", EPOCH).tag
    part = fragment(ip4() / udp(len=1200, chksum=1) / raw(64), 0, True)
    return [
        ("version 2", "a scent of version 2", "unsupported-version", insert(ip4() / tcp(), version=2)),
        ("version 0", "a scent of version 0", "unsupported-version", insert(ip6() / tcp(), version=0)),
        ("version first", "the version is looked at before the flags, which may mean something else in another",
         "unsupported-version", insert(ip4() / tcp(), version=2, flags=9)),
        ("unknown key", "a key id that is nobody's", "unknown-key", insert(ip4() / tcp(), key_id=b"\0\0\0\0")),
        ("own key", "our own scent sent back to us", "unknown-key", insert(ip4() / tcp(), "bob", "alice")),
        ("wrong source4", "alice's key from an address of carol", wrong, insert(ip4(src=C4) / tcp())),
        ("wrong source6", "alice's key from an address of carol", wrong, insert(ip6(src=C6) / tcp())),
        ("wrong destination", "to an address that is not the network's", wrong, insert(ip4(dst="10.9.0.1") / tcp())),
        ("ports left out", "a small TCP packet, no ports in its tag", binding, insert(ip4() / tcp(), flags=nothing)),
        ("portless 1280", "a packet of 1280 bytes has ports in its tag", binding,
         insert(ip4() / udp() / raw(1280 - 36 - 28), flags=nothing)),
        ("ports without ports", "ICMP with the ports flag", binding, insert(ip4() / ICMP(), flags=own)),
        ("ports in a fragment", "a fragment with the ports flag", binding, insert(part, flags=own)),
        ("portless atomic fragment", "an atomic fragment is whole and has ports", binding,
         insert(ip6() / IPv6ExtHdrFragment(nh=17, offset=0, m=0) / udp(), flags=nothing)),
        ("sender bound", "alice is bound to the flow, this scent to the sender alone", binding,
         insert(ip4() / tcp(), flags=sender)),
        ("flow bound", "carol is bound to the sender, this scent to the flow", binding,
         insert(ip4(src=C4) / tcp(), "carol")),
        ("both", "the sender flag leaves no place for the ports flag", binding,
         insert(ip4(src=C4) / tcp(), "carol", flags=sender | own)),
        ("future", "an epoch 11 s ahead", "future", insert(ip4() / tcp(), epoch=int(NOW) + 11)),
        ("far future", "the highest epoch there is", "future", insert(ip4() / tcp(), epoch=2**32 - 1)),
        ("stale", "an epoch 61 s old", "stale", insert(ip4() / tcp(), epoch=int(NOW) - 61)),
        ("epoch 0", "the oldest epoch there is", "stale", insert(ip6() / tcp(), epoch=0)),
        ("tag changed4", "the last bit of the tag", bad, flip(four, 55)),
        ("tag changed6", "the last bit of the tag", bad, flip(six, 77)),
        ("glance changed", "a glance that is not the one tagged", bad, flip(four, 22 + 3)),
        ("fragment changed", "one bit of the sealed profile", bad, flip(six, 44 + 13)),
        ("index changed", "another fragment's number", bad, flip(four, 22 + 12, 0x10)),
        ("source changed", "another address of the same peer", bad, flip(four, 15)),
        ("destination changed", "another address of the same network", bad, flip(six, 39)),
        ("source port changed", "replayed on another flow", bad, flip(four, 57)),
        ("destination port changed", "replayed on another flow", bad, flip(six, 83)),
        ("protocol changed4", "TCP's scent on a UDP packet", bad, flip(four, 9, 6 ^ 17)),
        ("protocol changed6", "TCP's scent on a UDP packet", bad, flip(six, 40, 6 ^ 17)),
        ("reflected", "tagged with the keys of the other direction", bad, insert(ip4() / tcp(), key=backward)),
        ("keys of another pair", "what alice sent to frank, sent to bob", bad, insert(ip6() / tcp(), key=other_pair)),
        ("previous keys", "an epoch of this period under the keys of the one before", bad,
         insert(ip4() / tcp(), key=wire_setup.keys_of("alice", "bob", wire_setup.BEFORE).tag)),
        ("portless to other protocol", "a portless scent moved from UDP to TCP", bad,
         flip(insert(ip4(flags=0) / udp() / raw(1400), flags=nothing), 9, 6 ^ 17)),
    ]  # fmt: skip


def accepted():
    """The last packets on the right side of each line."""
    return [
        ("future limit", "an epoch exactly 10 s ahead", insert(ip4() / tcp(), epoch=int(NOW) + 10)),
        ("stale limit", "an epoch exactly 60 s old, of the period before", insert(ip4() / tcp(), epoch=int(NOW) - 60)),
        ("portless 1281", "the smallest packet that may be portless",
         insert(ip4(flags=0) / udp() / raw(1281 - 36 - 28), flags=0)),
        ("atomic fragment", "a stamper that scents an atomic fragment binds its ports",
         insert(ip6() / IPv6ExtHdrFragment(nh=17, offset=0, m=0) / udp())),
        ("icmp", "no ports to bind", insert(ip4() / ICMP(), flags=0)),
        ("eight headers", "as many extension headers as are walked",
         insert(chain(7) / tcp())),
        ("to frank", "the same key id, another pair by destination", insert(ip6(dst=F6) / tcp(), receiver="frank")),
    ]  # fmt: skip


def replays():
    """(name, sentence, verdict, [packets before, with their times], packet, now), and the lag if there is one."""
    first = insert(ip4() / tcp(), epoch=EPOCH - 5)
    older = insert(ip4() / tcp(), epoch=EPOCH - 10)
    newer = insert(ip4() / tcp(), epoch=EPOCH)
    both = [(first, NOW - 5), (newer, NOW)]
    early = [(first, NOW - 5), (newer, NOW + 0.9)]  # of this second: grace runs from where it began
    alarm = insert(ip4() / tcp(), epoch=EPOCH + 1)
    quick = [*both, (alarm, NOW + 0.05)]
    return [
        ("replayed epoch", "the epoch before, when the grace of 2 s is over", "replayed-epoch", both, first, NOW + 2.5),
        ("grace", "the epoch before, 2 s after the new one was first seen", "accepted", both, first, NOW + 2.0),
        ("grace by seconds", "the second of first sight is rounded down, the time is not", "replayed-epoch",
         early, first, NOW + 2.1),
        ("grace in one second", "an alarm's epoch at once after another: the one before both has its grace", "accepted",
         quick, first, NOW + 1.5),
        ("older than grace in one second", "the one before that has none", "replayed-epoch", quick, older, NOW + 1.5),
        ("no grace for the unknown", "the first epoch that a receiver sees has none before it", "replayed-epoch",
         [(newer, NOW)], first, NOW),
        ("older than grace", "two epochs before, though in grace", "replayed-epoch", both, older, NOW + 1),
        ("clock back", "a clock set back grants no grace", "replayed-epoch", both, first, NOW - 1),
        ("same epoch", "within an epoch a scent may be used again", "accepted", both, newer, NOW + 3),
        ("other pair", "epochs are counted by pair", "accepted", both,
         insert(ip6(dst=F6) / tcp(), receiver="frank", epoch=EPOCH - 20), NOW + 10),
        ("rejected epochs do not count", "an epoch whose tag is wrong does not become the highest", "accepted",
         [(flip(newer, 55), NOW)], first, NOW + 3),
        ("lag limit", "an epoch as far below the highest as stampers may lag", "accepted",
         [(newer, NOW)], older, NOW + 20, 10),
        ("beyond the lag", "an epoch a second further below", "replayed-epoch", [(newer, NOW)], older, NOW + 1, 9),
        ("grace beyond the lag", "the epoch before has its grace, however small the lag", "accepted",
         both, first, NOW + 2.0, 4),
        ("lag is from the highest", "from the highest epoch, not from the clock", "replayed-epoch",
         [(newer, NOW), (insert(ip4() / tcp(), epoch=EPOCH + 5), NOW + 5)], older, NOW + 8, 10),
        ("stale within the lag", "no lag makes an epoch of over 60 s fresh", "stale",
         [(newer, NOW + 3)], older, EPOCH + 51, 55),
        ("forged within the lag", "nor a wrong tag right", "bad-tag", [(newer, NOW)], flip(older, 55), NOW + 1, 55),
    ]  # fmt: skip


def rejected():
    made = [vector(n, s, "absent", p) for n, s, p in absent()]
    made += [vector(n, s, "malformed", p) for n, s, p in malformed4() + malformed6()]
    made += [vector(*r) for r in refused()]
    made += [vector(n, s, "accepted", p) for n, s, p in accepted()]
    made += [vector(n, s, v, p, before, now, *lag) for n, s, v, before, p, now, *lag in replays()]
    described = wire_setup.described(stamping=False, receiving=True)
    described["content"] = {"glance_masked": 0x5A, "fragment": bytes(range(13)).hex(), "index": 0}
    return {"setup": described, "max_age": 60.0, "max_future": 10.0, "grace": 2.0, "packets": made}


def vector(name, sentence, verdict, packet, before=(), now=NOW, lag=0):
    """The reference's own verdict has to be the one that the list says."""
    packet = packet if isinstance(packet, bytes) else bytes(packet)
    one = wire_setup.verifier(now, lag=lag)
    for earlier, then in before:
        one.tick(then)
        one.verify(earlier)
    one.tick(now)
    outcome = one.verify(packet)
    found = "accepted" if isinstance(outcome, bytes) else layout.VERDICTS[outcome.verdict]
    assert found == verdict, (name, found, verdict)
    return {
        "name": name,
        "sentence": sentence,
        **({"lag": lag} if lag else {}),
        "before": [{"packet": p.hex(), "now": t} for p, t in before],
        "packet": packet.hex(),
        "now": now,
        "verdict": verdict,
        "treatment": None if isinstance(outcome, bytes) else outcome.treatment,
    }
