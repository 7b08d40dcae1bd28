"""Messages about HTB classes and u32 filters, as the kernel reads and writes them. Values in, bytes out.

pyroute2 needs 0.4 ms for each class and filter that it reads, and a tree of 1,000 peers is looked at every 5 s. It also
knows no hash tables of u32.
"""

from __future__ import annotations

from ipaddress import ip_network
from socket import htons
from struct import Struct, pack, unpack_from
from typing import Literal, NamedTuple

from scentd.prefix import Prefix
from scentd.system.rtnetlink import (
    CREATE,
    EXCL,
    TC,
    TCA_KIND,
    NetlinkRequest,
    attribute,
    attributes,
    text,
)

Direction = Literal["out", "in"]
Part = Literal["rate", "ceiling", "precedence"]  # of a class

# linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h
RTM_NEWQDISC, RTM_DELQDISC = 36, 37
RTM_NEWTCLASS, RTM_DELTCLASS, RTM_GETTCLASS = 40, 41, 42
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46
TCA_OPTIONS = 2
TC_H_ROOT = 0xFFFFFFFF
CLSACT, CLSACT_HANDLE, INGRESS, EGRESS = 0xFFFFFFF1, 0xFFFF0000, 0xFFFFFFF2, 0xFFFFFFF3
TCA_HTB_PARMS, TCA_HTB_INIT, TCA_HTB_RATE64, TCA_HTB_CEIL64 = 1, 2, 6, 7
TCA_U32_CLASSID, TCA_U32_HASH, TCA_U32_LINK, TCA_U32_DIVISOR, TCA_U32_SEL, TCA_U32_ACT = 1, 2, 3, 4, 5, 7
TCA_ACT_KIND, TCA_ACT_OPTIONS, TCA_ACT_COOKIE, TCA_MIRRED_PARMS = 1, 2, 6, 2
TC_ACT_UNSPEC, TC_ACT_STOLEN, EGRESS_REDIRECT, EGRESS_MIRROR = -1, 4, 1, 2
LINKLAYER_ETHERNET = 1  # with it the kernel wants no table of transmission times

GLOBAL = Struct("=5I")  # struct tc_htb_glob: version, rate2quantum, default class, debug, packets that went direct
RATE = Struct("=BBHhHI")  # struct tc_ratespec: cell log, link layer, overhead, cell align, mpu, bytes per second
CLASS = Struct("=12s12s5I")  # struct tc_htb_opt: rate, ceil, their bursts in ticks, quantum, level, priority
SELECTOR = Struct("=BBBx2sHhh4s")  # struct tc_u32_sel: flags, .., keys, .., offset of the hash, its mask
KEY = Struct("=4s4sii")  # struct tc_u32_key: mask and value as in the packet, offset, offset mask
MIRRED = Struct("=IIiiiiI")  # struct tc_mirred: index, capabilities, action, references, bindings, what, interface
WIDE = 1 << 32  # bytes per second that need a number of 64 bits

MAJOR = 0x5CE0
ROOT = MAJOR << 16
TICK = 64e-9  # seconds; PSCHED_SHIFT
BURST_SECONDS = 0.005
BURST_MIN = 3200  # bytes: two full packets
QUANTUM = (1514, 66000)  # bytes; with less than the largest send, turns would be fair by packets, not by bytes
QUANTUM_SECONDS = 0.01
ETHER_TYPE = {4: 0x0800, 6: 0x86DD}
ADDRESS_AT = {"out": {4: 16, 6: 24}, "in": {4: 12, 6: 8}}  # offset in the IP header: of the destination, of the source
PRIORITY = {4: 100, 6: 200}  # of the longest prefix; each length has its own priority, and no two protocols share one
REDIRECT_PRIORITY = {4: 60004, 6: 60006}  # behind everybody who looks at packets that come in
BUCKETS = 256


class HtbClass(NamedTuple):
    """A class of our tree. Rates in bits per second; `parent` is a whole handle.

    `precedence` as the kernel counts: 0 is served first.
    """

    minor: int
    parent: int
    rate: float
    ceiling: float
    precedence: int

    def having(self, part: Part, value: float) -> HtbClass:
        if part == "precedence":
            return self._replace(precedence=round(value))
        return self._replace(rate=value) if part == "rate" else self._replace(ceiling=value)


class PrefixFilter(NamedTuple):
    """A filter of our tree. `minor`: the class that it leads to; None if it leads to the hash table of its length, or
    is none of ours.
    """

    info: int  # priority and protocol, as the kernel wants them back
    handle: int
    prefix: Prefix | None
    minor: int | None
    table: int  # that it leads to, or 0


# -- classes ----------------------------------------------------------------------


def new_root(index: int) -> NetlinkRequest:
    options = attribute(TCA_HTB_INIT, GLOBAL.pack(3, 10, 0, 0, 0))
    body = TC.pack(0, index, ROOT, TC_H_ROOT, 0) + attribute(TCA_KIND, b"htb\0") + attribute(TCA_OPTIONS, options)
    return NetlinkRequest(RTM_NEWQDISC, CREATE | EXCL, body)


def del_root(index: int) -> NetlinkRequest:
    return NetlinkRequest(RTM_DELQDISC, 0, TC.pack(0, index, ROOT, TC_H_ROOT, 0))


def set_class(index: int, one: HtbClass, link: float, flags: int = 0) -> NetlinkRequest:
    """Make a class (flags CREATE | EXCL) or change it. `link`: bits per second of the whole."""
    low, high = QUANTUM
    quantum = min(max(round(link / 8 * QUANTUM_SECONDS), low), high)
    rate, ceiling = to_bytes(one.rate), to_bytes(one.ceiling)
    bursts = burst_ticks(rate), burst_ticks(ceiling)
    options = attribute(TCA_HTB_PARMS, CLASS.pack(spec(rate), spec(ceiling), *bursts, quantum, 0, one.precedence))
    options += b"".join(
        attribute(kind, pack("=Q", size))
        for kind, size in ((TCA_HTB_RATE64, rate), (TCA_HTB_CEIL64, ceiling))
        if size >= WIDE
    )
    body = class_body(index, one.minor, one.parent) + attribute(TCA_OPTIONS, options)
    return NetlinkRequest(RTM_NEWTCLASS, flags, body)


def del_class(index: int, one: HtbClass) -> NetlinkRequest:
    return NetlinkRequest(RTM_DELTCLASS, 0, class_body(index, one.minor, one.parent))


def class_body(index: int, minor: int, parent: int) -> bytes:
    return TC.pack(0, index, ROOT | minor, parent, 0) + attribute(TCA_KIND, b"htb\0")


def to_bytes(rate: float) -> int:
    return max(1, round(rate / 8))


def spec(size: int) -> bytes:
    return RATE.pack(0, LINKLAYER_ETHERNET, 0, 0, 0, min(size, WIDE - 1))


def burst_ticks(size: int) -> int:
    return round(max(BURST_SECONDS, BURST_MIN / size) / TICK)


def read_class(body: bytes) -> HtbClass | None:
    """None for a class that is not of our tree."""
    _, _, handle, parent, _ = TC.unpack_from(body)
    found = attributes(body, TC.size)
    if handle >> 16 != MAJOR or text(found.get(TCA_KIND, b"")) != "htb":
        return None
    options = attributes(found.get(TCA_OPTIONS, b""))
    rate, ceiling, _, _, _, _, precedence = CLASS.unpack_from(options[TCA_HTB_PARMS])
    sizes = [
        unpack_from("=Q", options[wide])[0] if wide in options else RATE.unpack(plain)[5]
        for wide, plain in ((TCA_HTB_RATE64, rate), (TCA_HTB_CEIL64, ceiling))
    ]
    return HtbClass(handle & 0xFFFF, parent, 8.0 * sizes[0], 8.0 * sizes[1], precedence)


# -- filters ----------------------------------------------------------------------
# For each length of prefix there are a hash table and a filter that leads to it, by the last bits of the prefix. So a
# packet is compared with few of a thousand prefixes.


def table_of(version: int, length: int) -> int:
    """The handle of the hash table for prefixes of this length: numbers up to 0x7ff are free for us."""
    return (1 + length if version == 4 else 34 + length) << 20


def info_of(version: int, length: int) -> int:
    """The priority of prefixes of this length, and their protocol."""
    longest = 32 if version == 4 else 128
    return PRIORITY[version] + longest - length << 16 | htons(ETHER_TYPE[version])


def hash_place(version: int, length: int) -> tuple[int, int, int]:
    """Which word of the address, and from and to which of its bits, finds the bucket: the last 8 or fewer."""
    word = max(0, length - 1) // 32
    end = length - 32 * word
    return word, max(0, end - 8), end


def bucket_of(prefix: Prefix) -> int:
    word, first, end = hash_place(prefix.version, prefix.prefixlen)
    value = int.from_bytes(prefix.network_address.packed[4 * word : 4 * word + 4], "big")
    return (value >> 32 - end) & ((1 << end - first) - 1)


def new_table(index: int, version: int, length: int) -> NetlinkRequest:
    options = attribute(TCA_U32_DIVISOR, pack("=I", BUCKETS))
    return new_filter(index, table_of(version, length), info_of(version, length), options)


def new_way(index: int, direction: Direction, version: int, length: int) -> NetlinkRequest:
    """The filter that leads to the table of a length."""
    word, first, end = hash_place(version, length)
    mask = ((1 << end - first) - 1) << 32 - end
    at = ADDRESS_AT[direction][version]
    keys = [(bytes(4), bytes(4), at)]
    options = selector(keys, at + 4 * word, mask.to_bytes(4, "big"))
    options += attribute(TCA_U32_LINK, pack("=I", table_of(version, length)))
    return new_filter(index, 0, info_of(version, length), options)


def new_prefix(index: int, direction: Direction, prefix: Prefix, minor: int) -> NetlinkRequest:
    place = table_of(prefix.version, prefix.prefixlen) | bucket_of(prefix) << 12
    options = (
        attribute(TCA_U32_CLASSID, pack("=I", ROOT | minor))
        + attribute(TCA_U32_HASH, pack("=I", place))
        + selector(keys_of(prefix, ADDRESS_AT[direction][prefix.version]))
    )
    return new_filter(index, 0, info_of(prefix.version, prefix.prefixlen), options)


def new_filter(index: int, handle: int, info: int, options: bytes) -> NetlinkRequest:
    body = TC.pack(0, index, handle, ROOT, info) + attribute(TCA_KIND, b"u32\0") + attribute(TCA_OPTIONS, options)
    return NetlinkRequest(RTM_NEWTFILTER, CREATE | EXCL, body)


def del_filter(index: int, one: PrefixFilter) -> NetlinkRequest:
    body = TC.pack(0, index, one.handle, ROOT, one.info) + attribute(TCA_KIND, b"u32\0")
    return NetlinkRequest(RTM_DELTFILTER, 0, body)


def keys_of(prefix: Prefix, at: int) -> list[tuple[bytes, bytes, int]]:
    packed, mask = prefix.network_address.packed, prefix.netmask.packed
    words = [(mask[i : i + 4], packed[i : i + 4], at + i) for i in range(0, len(packed), 4)]
    return [word for word in words if any(word[0])] or words[:1]


def selector(keys: list[tuple[bytes, bytes, int]], hash_at: int = 0, hash_mask: bytes = bytes(4)) -> bytes:
    flags = 0 if any(hash_mask) or hash_at else 1  # TC_U32_TERMINAL: the packet's class is found
    head = SELECTOR.pack(flags, 0, len(keys), bytes(2), 0, 0, hash_at, hash_mask)
    return attribute(TCA_U32_SEL, head + b"".join(KEY.pack(mask, value, at, 0) for mask, value, at in keys))


def read_filter(body: bytes, direction: Direction) -> PrefixFilter | None:
    """A filter below our root; None for hash tables, which the kernel tells as filters, too."""
    _, _, handle, _, info = TC.unpack_from(body)
    found = attributes(body, TC.size)
    options = attributes(found.get(TCA_OPTIONS, b""))
    version = next((v for v, number in ETHER_TYPE.items() if htons(number) == info & 0xFFFF), None)
    if handle == 0 or TCA_U32_DIVISOR in options:
        return None
    alien = PrefixFilter(info, handle, None, None, 0)
    if version is None or TCA_U32_SEL not in options or text(found.get(TCA_KIND, b"")) != "u32":
        return alien
    if TCA_U32_LINK in options:
        return alien._replace(table=unpack_from("=I", options[TCA_U32_LINK])[0])
    prefix = read_prefix(options[TCA_U32_SEL], version, ADDRESS_AT[direction][version])
    if prefix is None or TCA_U32_CLASSID not in options:
        return alien
    place = table_of(version, prefix.prefixlen) | bucket_of(prefix) << 12
    if handle & ~0xFFF != place or info != info_of(version, prefix.prefixlen):
        return alien
    return alien._replace(prefix=prefix, minor=unpack_from("=I", options[TCA_U32_CLASSID])[0] & 0xFFFF)


def read_prefix(data: bytes, version: int, at: int) -> Prefix | None:
    """The prefix whose addresses the keys of a selector match; None if it is none."""
    words = {at + 4 * i: (bytes(4), bytes(4)) for i in range(1 if version == 4 else 4)}
    for i in range(SELECTOR.unpack_from(data)[2]):
        mask, value, offset, _ = KEY.unpack_from(data, SELECTOR.size + KEY.size * i)
        if offset not in words:
            return None
        words[offset] = mask, value
    mask = b"".join(mask for mask, _ in words.values())
    length = int.from_bytes(mask, "big").bit_count()
    try:
        prefix = ip_network((b"".join(value for _, value in words.values()), length))
    except ValueError:
        return None
    return prefix if prefix.netmask.packed == mask else None


# -- what comes in ----------------------------------------------------------------


def new_clsact(index: int) -> NetlinkRequest:
    return NetlinkRequest(RTM_NEWQDISC, CREATE | EXCL, clsact_body(index))


def clsact_body(index: int) -> bytes:
    return TC.pack(0, index, CLSACT_HANDLE, CLSACT, 0) + attribute(TCA_KIND, b"clsact\0")


def redirect_body(index: int, version: int) -> bytes:
    info = REDIRECT_PRIORITY[version] << 16 | htons(ETHER_TYPE[version])
    return TC.pack(0, index, 0, INGRESS, info) + attribute(TCA_KIND, b"u32\0")


def new_redirect(index: int, version: int, to: int) -> NetlinkRequest:
    """All packets of an IP version that come in here go out at the interface `to`."""
    options = selector([(bytes(4), bytes(4), 0)]) + send(to, EGRESS_REDIRECT, TC_ACT_STOLEN)
    body = redirect_body(index, version) + attribute(TCA_OPTIONS, options)
    return NetlinkRequest(RTM_NEWTFILTER, CREATE | EXCL, body)


def del_redirect(index: int, version: int) -> NetlinkRequest:
    """All filters of this priority, which is ours."""
    return NetlinkRequest(RTM_DELTFILTER, 0, redirect_body(index, version))


def read_redirect(body: bytes) -> tuple[int, int] | None:
    """(IP version, interface that it leads to) of a filter of ours on what comes in."""
    _, _, handle, _, info = TC.unpack_from(body)
    version = next((v for v, number in REDIRECT_PRIORITY.items() if number == info >> 16), None)
    options = attributes(attributes(body, TC.size).get(TCA_OPTIONS, b""))
    if version is None or handle == 0 or TCA_U32_ACT not in options:
        return None
    return version, read_send(options[TCA_U32_ACT])[0]


def send(to: int, how: int, verdict: int, cookie: bytes = b"") -> bytes:
    """The action of a filter: packets, or copies of them, go out at the interface `to`. `cookie` says whose it is."""
    target = MIRRED.pack(0, 0, verdict, 0, 0, how, to)
    action = attribute(TCA_ACT_KIND, b"mirred\0") + attribute(TCA_ACT_OPTIONS, attribute(TCA_MIRRED_PARMS, target))
    return attribute(TCA_U32_ACT, attribute(1, action + (attribute(TCA_ACT_COOKIE, cookie) if cookie else b"")))


def read_send(data: bytes) -> tuple[int, bytes]:
    """(interface, cookie) of such an action; 0 if it is another one, or the interface is gone."""
    action = attributes(next(iter(attributes(data).values()), b""))
    target = attributes(action.get(TCA_ACT_OPTIONS, b"")).get(TCA_MIRRED_PARMS)
    return MIRRED.unpack_from(target)[6] if target else 0, action.get(TCA_ACT_COOKIE, b"")
