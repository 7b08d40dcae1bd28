"""Which packets the queues get: the nftables table `inet scentd_path`, as text of nft(8). Pure.

    prerouting  -301  in        from peers, with a scent, or anything: marks for the verify queues
                -300            iptables raw: what is marked goes to the queue (rules.py)
                -299            the guard (scentd/guard/table.py), if something is to be kept closed
                -198  judged    clears our marks, so that neither others' rules nor routing see them
    output      -300  beacons   beside NAT: keeps NAT from what scentd itself sends
    output        49  out       to peers: marks for the stamp queues
    forward       49  across    the same for our networks' nodes, if asked for; and for the BPF stamper
    both          50            iptables security (150 with iptables-nft): what is marked goes to the queue
    output       151  sent      clears the mark
    forward      151  passed    the same
    postrouting  101  behind    beside NAT: makes void what NAT has made wrong (rewritten.py)

Verdicts are read before conntrack (-200), because nothing that restores a connection's mark can come earlier. Packets
are stamped behind the host's own mangle, nat and filter tables, because these may rewrite marks and destinations.

The prefixes are in sets of this table and not in iptables rules: somebody may save these rules, and a saved rule that
names a missing set makes the whole restore fail at the next boot. A saved rule of ours only looks at a mark.

A base chain is never deleted while packets may wait in a queue, because the kernel drops these then.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from scentd.config.origin import mark_bits
from scentd.config.sections import Config, stamped_peers
from scentd.core.closed import Range, closed, ends, merged, range_text
from scentd.core.offload.coverage import Coverage
from scentd.datapath.host import rewritten
from scentd.datapath.host.rewritten import PROTOCOL, Rewrites
from scentd.guard.table import DECRYPTED
from scentd.prefix import numeric
from scentd.wire import layout

NAME = "scentd_path"
# Chain -> hook and priority.
HOOKS = {
    "in": ("prerouting", -301),
    "judged": ("prerouting", -198),
    "beacons": ("output", -300),
    "out": ("output", 49),
    "sent": ("output", 151),
    "across": ("forward", 49),
    "passed": ("forward", 151),
    "behind": ("postrouting", 101),
}
# Our networks; peers that we stamp to; those of them whose scents bind addresses; peers that we verify.
SET_KINDS = ("local", "stamp", "bound", "verify")
# Neighbour discovery needs these messages, so no queue may hold them up. Only a neighbour's messages pass the verifier:
# RFC 4861 section 7.1 requires a hop limit of 255, which no packet has after a router; RFC 2710 section 3 and RFC 3810
# section 5 send multicast listener messages with 1.
UNQUEUED = (
    "fib daddr type { broadcast, multicast } accept",
    "icmpv6 type { 133, 134, 135, 136, 137 } ip6 hoplimit 255 accept",
    "icmpv6 type { 130, 131, 132, 143 } ip6 hoplimit 1 accept",
)
TOO_BIG = ("icmp type destination-unreachable icmp code 4", "icmpv6 type packet-too-big")
# The same about a packet with a scent, by its place in the quotation: this host's own tunnels send such errors, if they
# carry less than their interface says.
SCENT_TOO_BIG = (
    f"{TOO_BIG[0]} @th,{8 * (8 + 20)},16 {layout.IPV4_OPTION_TYPE << 8 | layout.IPV4_OPTION_LEN:#x}",
    f"{TOO_BIG[1]} @th,{8 * (8 + 42)},16 {layout.IPV6_OPTION_TYPE << 8 | layout.LEN:#x}",
)
# Packets that may hold a scent: an IPv4 header of more than five words; a Destination Options header.
HAS_OPTIONS = ("ip hdrlength > 5", "exthdr dst exists")
UNCHANGED = Rewrites()
# Packets that IPsec will encrypt. Transport mode keeps their addresses, so they are stamped when they come by again,
# encrypted. A tunnel's have others' addresses, so what is inside is stamped; no program sees that where it leaves.
# IPv6 is not stamped inside: if it outgrows the tunnel behind the queue, Linux 6.1 follows a null pointer (measured, in
# xfrm_local_error(): a packet from a queue may have no socket).
TO_ENCRYPT = (
    "meta nfproto ipv4 ipsec out ip daddr != 255.255.255.255 goto leaving",
    "meta nfproto ipv4 ipsec out ip6 daddr != :: goto leaving",
    "meta nfproto ipv6 ipsec out ip daddr != 255.255.255.255 goto tunnel",
    "meta nfproto ipv6 ipsec out ip6 daddr != :: goto tunnel",
)
PLAIN_NAME = re.compile(r"^[A-Za-z0-9_.@-]+$")  # of an interface, as nft(8) takes it without escapes


class TableRule(NamedTuple):
    chain: str
    text: str


class Selection(NamedTuple):
    """The rules of the table, and the addresses of its sets by name."""

    rules: tuple[TableRule, ...]
    sets: dict[str, tuple[Range, ...]]

    @property
    def digest(self) -> str:
        """Tells these rules from others."""
        return hashlib.sha256("\n".join(map(" ".join, self.rules)).encode()).hexdigest()[:16]


def select(config: Config, served: Coverage | None = None, rewrites: Rewrites = UNCHANGED) -> Selection:
    """What this configuration wants. `served`: the interfaces of the BPF programs, None without offload."""
    rules = [
        *inbound_rules(config, served),
        *outbound_rules(config, served or Coverage(), rewrites),
        *(rewritten_rules(config, served or Coverage()) if rewrites.nat and stamped_peers(config) else ()),
    ]
    return Selection(tuple(rules), sets(config))


def sets(config: Config) -> dict[str, tuple[Range, ...]]:
    """The addresses of each set, as ranges that lie apart."""
    addresses: dict[str, Iterable[str]] = {
        "local": chain.from_iterable(n.addresses for n in config.network),
        "source": chain.from_iterable(n.addresses for n in config.network if not n.has_origin),
        "stamp": chain.from_iterable(p.addresses for p in stamped_peers(config)),
        "bound": chain.from_iterable(p.addresses for p in stamped_peers(config) if p.bind == "flow"),
        "verify": chain.from_iterable(p.addresses for p in config.peer if p.verify),
    }
    result: dict[str, tuple[Range, ...]] = {}
    for kind in (*SET_KINDS, *(["source"] if own_sources(config) == "source" else [])):
        ranges = sorted({ends(numeric(a)) for a in addresses[kind]}, key=lambda r: (r[0], r[1], -r[2]))
        found = tuple(merged(ranges))
        for version in PROTOCOL:
            result[f"{kind}{version}"] = tuple(r for r in found if r[0] == version)
    return result


def set_commands(sets: Mapping[str, Sequence[Range]]) -> list[str]:
    """The commands that make these sets, or give them these addresses."""
    lines = []
    for name, ranges in sets.items():
        kind = "ipv4_addr" if name.endswith("4") else "ipv6_addr"
        lines += [f"add set inet {NAME} {name} {{ type {kind}; flags interval; }}", f"flush set inet {NAME} {name}"]
        if ranges:
            lines.append(f"add element inet {NAME} {name} {{ {', '.join(map(range_text, ranges))} }}")
    return lines


def rule_commands(selection: Selection) -> list[str]:
    """The commands that replace all rules of the table. Base chains that have no rules any more stay, empty."""
    lines = []
    for name in dict.fromkeys(rule.chain for rule in selection.rules):
        hook = "{{ type filter hook {} priority {}; policy accept; }}".format(*HOOKS[name]) if name in HOOKS else ""
        lines.append(f"add chain inet {NAME} {name} {hook}")
    digest = selection.digest
    return [
        *lines,
        *(f"add set inet {NAME} {text}" for text in rewritten.set_commands()),
        f"flush table inet {NAME}",
        *(f'add rule inet {NAME} {rule.chain} {rule.text} comment "{digest}"' for rule in selection.rules),
    ]


# -- packets that come -------------------------------------------------------


def inbound_rules(config: Config, served: Coverage | None) -> Iterator[TableRule]:
    """Marks packets from peers and packets that may hold a scent; all packets unless verify.absent is "pass".

    With the offload only those that it has not judged.
    """
    verified, queued = config.datapath.mark_verified, config.datapath.mark_queued
    guarded = closed(config) is not None
    if served is not None:
        clear = "" if guarded else f"{clear_bits(verified)} "
        yield TableRule("in", f"{is_marked(verified)} {clear}accept")
    yield from (TableRule("in", f"iif lo {match} {set_bits(queued)} accept") for match in SCENT_TOO_BIG)
    yield TableRule("in", "iif lo accept")
    yield TableRule("in", "meta iifkind vrf accept")  # the second time that these packets come by
    yield TableRule("in", "meta ipsec exists jump decrypted")
    yield from (TableRule("decrypted", rule) for rule in DECRYPTED)
    yield from (TableRule("in", f"{match} goto ours") for match in destinations(config))
    yield from (TableRule("ours", rule) for rule in UNQUEUED)
    sources = (f"{PROTOCOL[version]} saddr @verify{version}" for version in PROTOCOL)
    some = (*TOO_BIG, *sources, *HAS_OPTIONS, *announcing(config, served or Coverage()))
    for match in ("",) if config.verify.absent != "pass" else some:
        yield TableRule("ours", f"{match} {set_bits(queued)}".strip())
    if guarded:
        yield TableRule("judged", f"{is_marked(verified)} {clear_bits(verified)}")
        yield TableRule("judged", f"{is_marked(queued)} {clear_bits(queued)}")


def announcing(config: Config, served: Coverage) -> Iterator[str]:
    """The matches for SYNs of peers that are stamped to and not verified: what they announce may have to be lowered.

    The programs do it on their interfaces, and leave no mark on packets that they do not judge.
    """
    if all(peer.verify for peer in stamped_peers(config)):
        return
    names = [quoted(name) for name in served.stamping if PLAIN_NAME.match(name)]
    others = f"iifname != {{ {', '.join(names)} }} " if names else ""
    yield from (f"{others}{PROTOCOL[version]} saddr @stamp{version} tcp flags & syn == syn" for version in PROTOCOL)


def destinations(config: Config) -> Iterator[str]:
    """The matches for destinations in our networks."""
    if has_prefixes(config):
        yield from (f"{PROTOCOL[version]} daddr @local{version}" for version in PROTOCOL)
    if has_whole_host(config):
        yield "fib daddr type local"


def has_prefixes(config: Config) -> bool:
    return any(network.addresses for network in config.network)


def has_whole_host(config: Config) -> bool:
    """A network without addresses, or no network at all, means every address of this host."""
    return not config.network or any(network.is_whole_host for network in config.network)


def own_sources(config: Config) -> str:
    """The set of the networks whose packets are known by their source: all of them, unless some have an origin."""
    return "source" if any(network.has_origin for network in config.network) else "local"


def known_by_source(config: Config) -> Iterator[str]:
    """The matches for packets of our networks: by their source, or by where they come from."""
    if any(network.addresses for network in config.network if not network.has_origin):
        yield from (f"{PROTOCOL[version]} saddr @{own_sources(config)}{version}" for version in PROTOCOL)
    yield from came_from(config)


def came_from(config: Config) -> Iterator[str]:
    """The matches for packets of the networks that have an origin."""
    interfaces = [name for network in config.network for name in network.interface]
    if interfaces:
        yield f"iifname {{ {', '.join(map(quoted, interfaces))} }}"
    for value, mask in (mark_bits(network.mark) for network in config.network if network.mark):
        yield f"meta mark & {mask:#x} == {value:#x}"


# -- packets that leave ------------------------------------------------------


def outbound_rules(config: Config, served: Coverage, rewrites: Rewrites = UNCHANGED) -> Iterator[TableRule]:
    """Marks local packets to peers, and forwarded ones of our networks if configured, for the stamp queues.

    With the offload only those that leave by an interface without a BPF stamper.
    """
    queued = config.datapath.mark_queued
    names = [name for name in served.stamping if PLAIN_NAME.match(name)]
    programs = f"oifname {{ {', '.join(map(quoted, names))} }}" if names else ""
    if not served.rule_free:
        yield TableRule("out", "meta oifkind vrf accept")  # these packets come by again, with their interface
        yield TableRule("out", "rt ipsec exists goto to_encrypt")
        if programs:
            yield TableRule("out", f"{programs} accept")
        yield TableRule("out", "goto leaving")
        yield TableRule("sent", f"{is_marked(queued)} {clear_bits(queued)}")
        yield from (TableRule("to_encrypt", rule) for rule in TO_ENCRYPT)
        yield from tunnel_rules(config)
        yield from leaving_rules(config, rewrites)
    if not config.stamp.forwarded or (served.rule_free and not programs):
        return
    known = list(known_by_source(config)) or [""]
    yield from (TableRule("across", f"{match} goto forwarded".strip()) for match in known)
    if not served.rule_free:
        yield TableRule("forwarded", "rt ipsec exists goto to_encrypt")
    if programs:  # the program sees the source only after NAT
        yield TableRule("forwarded", f"{programs} {set_bits(config.datapath.mark_stamped)} accept")
    if not served.rule_free:
        yield TableRule("forwarded", "goto leaving")
        yield TableRule("passed", f"{is_marked(queued)} {clear_bits(queued)}")


def tunnel_rules(config: Config) -> Iterator[TableRule]:
    """Count the IPv6 packets to peers that go into a tunnel, and so leave without a scent."""
    known = [] if has_whole_host(config) else list(known_by_source(config))
    yield TableRule("tunnel", "ip6 daddr @stamp6 goto in_tunnel")
    yield from (TableRule("in_tunnel", f"{match} goto tunnelled".strip()) for match in known or [""])
    yield from (TableRule("tunnelled", rule) for rule in UNQUEUED)
    yield TableRule("tunnelled", rewritten.count(6, rewritten.TUNNELLED))


def leaving_rules(config: Config, rewrites: Rewrites) -> Iterator[TableRule]:
    """For packets that leave through an interface without a program."""
    yield TableRule("leaving", "oif lo accept")
    yield TableRule("leaving", f"{is_marked(config.datapath.mark_stamped)} accept")
    yield from (TableRule("leaving", f"{PROTOCOL[v]} daddr @stamp{v} goto to_peer") for v in PROTOCOL)
    known = [] if has_whole_host(config) else list(known_by_source(config))
    yield from (TableRule("to_peer", f"{match} goto unscented".strip()) for match in known or [""])
    yield from (TableRule("unscented", rule) for rule in UNQUEUED)
    if rewrites.nat:
        yield from (TableRule("unscented", rule) for rule in rewritten.known_rules())
    yield TableRule("unscented", set_bits(config.datapath.mark_queued))


def rewritten_rules(config: Config, served: Coverage) -> Iterator[TableRule]:
    """For a host with NAT."""
    yield TableRule("beacons", rewritten.beacon_rule(is_marked(config.datapath.mark_stamped)))
    if not served.rule_free:
        prefixes_only = has_prefixes(config) and not has_whole_host(config)
        yield from (TableRule("behind", rule) for rule in rewritten.void_rules(prefixes_only))


def is_marked(bits: int) -> str:
    return f"meta mark & {bits:#x} == {bits:#x}"


def set_bits(bits: int) -> str:
    return f"meta mark set meta mark | {bits:#x}"


def clear_bits(bits: int) -> str:
    return f"meta mark set meta mark & {bits ^ 0xFFFFFFFF:#x}"


def quoted(name: str) -> str:
    return f'"{name}"'
