"""Limits the rate from this host to a peer: an HTB class for each peer, on one interface.

The handle of the root qdisc (5ce0:) identifies it as ours. Packets that no filter matches pass through HTB's
direct queue, unshaped. A peer's filters (u32 on the destination, the longest prefix first) lead to its class, so the
kernel holds all the state: apply() reads it and writes the difference. A new rate is set in place; no packet that
waits in the class is lost.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from socket import ntohs
from struct import Struct
from typing import Any

from pyroute2 import IPRoute, NetlinkError

from scentd.act.actuator import Actuator, ActuatorKind
from scentd.config.schema import kind_of
from scentd.config.sections import Config
from scentd.core.allocate.actions.bandwidth import RateKey, never_used
from scentd.errors import HostError
from scentd.prefix import Prefix, prefixes
from scentd.system import rtnetlink

MAJOR = 0x5CE0
ROOT = MAJOR << 16
TC_H_ROOT = 0xFFFFFFFF
MINOR_MAX = 0xFFFE
ETHER_TYPE = {4: 0x0800, 6: 0x86DD}
DESTINATION_AT = {4: 16, 6: 24}  # offset in the IP header
PRIORITY = {4: 100, 6: 200}  # of the longest prefix; each length has its own priority, and no two protocols share one
SELECTOR_LEN = 20  # struct tc_u32_sel (linux/pkt_cls.h) behind its attribute header
KEY = Struct("=4s4sii")  # struct tc_u32_key: mask and value as in the packet, offset, offset mask
RATE_SLACK = 16.0  # bits per second; HTB counts whole bytes
BURST_SECONDS = 0.005
BURST_MIN = 3200  # bytes: two full packets
QUANTUM = (1514, 60000)  # bytes; outside of 1000..200000 the kernel complains


@dataclass(frozen=True, slots=True)
class PrefixFilter:
    prefix: Prefix
    minor: int  # class
    priority: int
    handle: int


@dataclass(frozen=True, slots=True)
class HtbTree:
    """The classes and filters below our root qdisc."""

    rates: dict[int, float]  # class minor -> bits per second
    filters: tuple[PrefixFilter, ...]


class Shaper:
    """Rates on one interface. `prefixes`: peer -> its prefixes. Raises HostError. Belongs to one thread."""

    def __init__(self, interface: str, prefixes: Mapping[str, Sequence[Prefix]]) -> None:
        self.interface = interface
        self.name = f"bandwidth_{interface}"
        self.resource = interface
        self._prefixes = prefixes

    def read_rates(self) -> dict[str, float]:
        """peer -> bits per second in the kernel; without peers whose filters are incomplete."""
        with netlink(self.interface) as ipr:
            index = index_of(ipr, self.interface)
            if not has_own_root(ipr, index, self.interface):
                return {}
            return self._by_peer(read(ipr, index))

    def apply(self, resources: Mapping[RateKey, float], now: float) -> int:
        return self.shape({peer: rate for (peer, on), rate in resources.items() if on == self.interface})

    def observe(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        """It holds nothing between two calls."""

    def shape(self, rates: Mapping[str, float]) -> int:
        """Shape exactly these peers; return the number of changes."""
        want = {peer: rate for peer, rate in rates.items() if self._prefixes.get(peer)}
        if not want:
            return int(self.remove())
        with netlink(self.interface) as ipr:
            index = index_of(ipr, self.interface)
            changes = 0
            if not has_own_root(ipr, index, self.interface):
                ipr.tc("add", "htb", index, handle=ROOT, parent=TC_H_ROOT, default=0)
                changes += 1
            tree = read(ipr, index)
            minors = assign_minors(tree, {peer: self._prefixes[peer] for peer in want})
            changes += self._set_classes(ipr, index, tree, {minors[n]: rate for n, rate in want.items()})
            filters = {prefix: minors[n] for n in want for prefix in self._prefixes[n]}
            changes += self._set_filters(ipr, index, tree, filters)
            for minor in tree.rates.keys() - minors.values():
                ipr.tc("del-class", index=index, handle=ROOT | minor, parent=ROOT)
                changes += 1
            return changes

    def remove(self) -> bool:
        """Remove our root qdisc; the kernel restores its default. Return whether there was one."""
        with netlink(self.interface) as ipr:
            indexes = ipr.link_lookup(ifname=self.interface)
            return bool(indexes) and remove_from(ipr, indexes[0])

    def _by_peer(self, tree: HtbTree) -> dict[str, float]:
        minors: dict[Prefix, int] = {f.prefix: f.minor for f in tree.filters}
        rates = {}
        for peer, own in self._prefixes.items():
            used = {minors.get(prefix) for prefix in own}
            minor = used.pop() if len(used) == 1 else None
            if minor in tree.rates:
                rates[peer] = tree.rates[minor]
        return rates

    def _set_classes(self, ipr: IPRoute, index: int, tree: HtbTree, want: Mapping[int, float]) -> int:
        changes = 0
        for minor, rate in want.items():
            old = tree.rates.get(minor)
            if old is None or abs(old - rate) > RATE_SLACK:
                verb = "add-class" if old is None else "change-class"
                ipr.tc(verb, "htb", index, handle=ROOT | minor, parent=ROOT, **class_options(rate))
                changes += 1
        return changes

    def _set_filters(self, ipr: IPRoute, index: int, tree: HtbTree, want: Mapping[Prefix, int]) -> int:
        kept: set[Prefix] = set()
        changes = 0
        for old in tree.filters:
            if want.get(old.prefix) == old.minor and old.prefix not in kept:
                kept.add(old.prefix)
                continue
            where = {
                "prio": old.priority,
                "protocol": ETHER_TYPE[old.prefix.version],
                "target": 0,
            }  # pyroute2 wants one
            ipr.tc("del-filter", "u32", index, handle=old.handle, parent=ROOT, **where)
            changes += 1
        for prefix, minor in want.items():
            if prefix not in kept:
                ipr.tc("add-filter", "u32", index, parent=ROOT, target=ROOT | minor, **filter_options(prefix))
                changes += 1
        return changes


class BandwidthActuators(ActuatorKind):
    def actuators(self, config: Config) -> list[Actuator]:
        by_peer = {peer.name: prefixes(peer.addresses) for peer in config.peer}
        return [Shaper(interface, by_peer) for interface in interfaces(config)]

    def notes(self, config: Config) -> list[str]:
        found = [
            f"policy {name}: only raises a rate that nothing sets; give it `start`, or the interface a policy with a "
            "negative step"
            for name in never_used(config.policy)
        ]
        there = {name for _, name in socket.if_nameindex()}
        return found + [
            f"interface {name}: is not there now; until it is, bandwidth policies limit nothing on it"
            for name in interfaces(config)
            if name not in there
        ]

    def sweep(self, config: Config) -> None:
        remove_everywhere(besides=interfaces(config))

    def remove_all(self) -> list[str]:
        return [f"qdisc htb {MAJOR:x}: on {name}" for name in remove_everywhere()]


def interfaces(config: Config) -> list[str]:
    """The interfaces on which policies set rates."""
    return sorted({p.do.interface for p in config.policy if kind_of(p.do) == "bandwidth"})  # type: ignore[attr-defined]


def remove_everywhere(besides: Collection[str] = ()) -> list[str]:
    """Remove our root qdiscs from all interfaces except `besides`; return the names of those that had one.

    All qdiscs are read once: each question about one interface makes the kernel tell of all, too.
    """
    qdiscs = rtnetlink.qdiscs()
    having = {q.interface for q in qdiscs if (q.parent, q.handle, q.kind) == (TC_H_ROOT, ROOT, "htb")}
    with netlink("all interfaces") as ipr:
        names = {index: name for index, name in socket.if_nameindex() if index in having and name not in besides}
        return [name for index, name in names.items() if remove_from(ipr, index)]


def remove_from(ipr: IPRoute, index: int) -> bool:
    """Whether this call removed our root qdisc. A daemon and `scentd cleanup` may do so at the same time."""
    if not any(is_ours(q) for q in ipr.get_qdiscs(index=index)):
        return False
    try:
        ipr.tc("del", index=index, handle=ROOT, parent=TC_H_ROOT)
    except NetlinkError:
        if any(is_ours(q) for q in ipr.get_qdiscs(index=index)):
            raise
        return False
    return True


def is_ours(qdisc: Any) -> bool:
    return qdisc["parent"] == TC_H_ROOT and qdisc["handle"] == ROOT and qdisc.get_attr("TCA_KIND") == "htb"


def has_own_root(ipr: IPRoute, index: int, interface: str) -> bool:
    """Whether our root qdisc exists. Raises HostError if another's does: the kernel's own default has handle 0."""
    for qdisc in ipr.get_qdiscs(index=index):
        if is_ours(qdisc):
            return True
        if qdisc["parent"] == TC_H_ROOT and qdisc["handle"] != 0:
            kind, major = qdisc.get_attr("TCA_KIND"), qdisc["handle"] >> 16
            raise HostError(
                f"interface {interface}: has a root qdisc that is not ours ({kind} {major:x}:); give the bandwidth "
                f"policy another interface, or remove the qdisc with: tc qdisc del dev {interface} root"
            )
    return False


def read(ipr: IPRoute, index: int) -> HtbTree:
    rates = {}
    for entry in ipr.get_classes(index=index):
        if entry["handle"] >> 16 == MAJOR and entry.get_attr("TCA_KIND") == "htb":
            options = entry.get_attr("TCA_OPTIONS")
            wide = options.get_attr("TCA_HTB_RATE64")  # bytes per second, from 2**32 on
            rates[entry["handle"] & 0xFFFF] = 8.0 * (wide or options.get_attr("TCA_HTB_PARMS")["rate"])
    filters = (decode_filter(entry) for entry in ipr.get_filters(index=index, parent=ROOT))
    return HtbTree(rates, tuple(f for f in filters if f is not None))


def decode_filter(entry: Any) -> PrefixFilter | None:
    """One of our u32 filters; None for their hash tables, which the kernel lists, too."""
    options = entry.get_attr("TCA_OPTIONS")
    selector = options.get_attr("TCA_U32_SEL") if entry.get_attr("TCA_KIND") == "u32" and options else None
    protocol = ntohs(entry["info"] & 0xFFFF)
    version = next((v for v, number in ETHER_TYPE.items() if number == protocol), None)
    if selector is None or version is None:
        return None
    bits, value, mask = (32 if version == 4 else 128), 0, 0
    for i in range(selector["nkeys"]):
        # struct tc_u32_key, read from the message: pyroute2 0.9.7 decodes the keys four bytes too early
        at = selector.offset + SELECTOR_LEN + KEY.size * i
        key_mask, key_value, offset, _ = KEY.unpack_from(selector.data, at)
        shift = bits - 32 - 8 * (offset - DESTINATION_AT[version])
        if 0 <= shift < bits:
            value |= int.from_bytes(key_value, "big") << shift
            mask |= int.from_bytes(key_mask, "big") << shift
    address = value.to_bytes(bits // 8, "big")
    prefix = ip_network((address, mask.bit_count()), strict=False)
    return PrefixFilter(prefix, options.get_attr("TCA_U32_CLASSID") & 0xFFFF, entry["info"] >> 16, entry["handle"])


def assign_minors(tree: HtbTree, prefixes: Mapping[str, Sequence[Prefix]]) -> dict[str, int]:
    """peer -> class minor: the minor that its filters lead to already, else the lowest free one."""
    minors = {f.prefix: f.minor for f in tree.filters}
    assigned: dict[str, int] = {}
    for peer, own in prefixes.items():
        used = {minors[p] for p in own if p in minors}
        if len(used) == 1 and not used & set(assigned.values()):
            assigned[peer] = used.pop()
    in_use = {*assigned.values(), *tree.rates}
    free = (minor for minor in range(1, MINOR_MAX + 1) if minor not in in_use)
    for peer in prefixes:
        if peer not in assigned:
            assigned[peer] = next(free)
    return assigned


def class_options(rate: float) -> dict[str, int]:
    """`rate` in bits per second; pyroute2 takes bytes."""
    size = max(1, round(rate / 8))
    burst = max(BURST_MIN, round(size * BURST_SECONDS))
    low, high = QUANTUM
    return {"rate": size, "ceil": size, "burst": burst, "cburst": burst, "quantum": min(max(size // 10, low), high)}


def filter_options(prefix: Prefix) -> dict[str, Any]:
    packed, mask = prefix.network_address.packed, prefix.netmask.packed
    at = DESTINATION_AT[prefix.version]
    words = [(packed[i : i + 4].hex(), mask[i : i + 4].hex(), at + i) for i in range(0, len(packed), 4)]
    keys = [f"0x{value}/0x{bits}+{offset}" for value, bits, offset in words if bits != "00000000"]
    return {
        "keys": keys or [f"0x0/0x0+{at}"],
        "prio": PRIORITY[prefix.version] + prefix.max_prefixlen - prefix.prefixlen,
        "protocol": ETHER_TYPE[prefix.version],
    }


def index_of(ipr: IPRoute, interface: str) -> int:
    indexes = ipr.link_lookup(ifname=interface)
    if not indexes:
        raise HostError(f"interface {interface}: does not exist; correct do.interface of the bandwidth policy")
    return indexes[0]


@contextmanager
def netlink(interface: str) -> Iterator[IPRoute]:
    """A netlink socket in this thread's namespace; its errors as HostError."""
    try:
        with IPRoute() as ipr:
            yield ipr
    except NetlinkError as error:
        hint = "; scentd needs CAP_NET_ADMIN" if error.code in (errno.EPERM, errno.EACCES) else ""
        raise HostError(f"interface {interface}: tc: {error}{hint}") from error
