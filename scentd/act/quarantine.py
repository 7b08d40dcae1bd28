"""Drops packets from quarantined addresses and prefixes: the nftables table `inet scentd`.

The chain `prerouting` hooks before our verifier's queue in raw (-300) and before conntrack (-200), so that a
quarantined node costs next to nothing. Packets over `lo` pass. So do some quarantined ones that look scented,
HEARD_RATE a second of each family: the verifier has to hear the all-clear of whom we quarantine. The chain `verified`
behind the queue drops them all the same.

Each prefix length in use has one hash set (`ipv4_32`, `ipv6_64`), looked up by `saddr & mask`. An interval
set would refuse overlapping prefixes with ends of their own. The kernel removes an element when its
time is over, so that no sender is cut off for longer than a policy says, even if the daemon dies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import closing
from ipaddress import ip_network
from typing import Any

from scentd.act.actuator import Actuator, ActuatorKind
from scentd.config.schema import kind_of
from scentd.config.sections import Config
from scentd.core.allocate.actions.quarantine import QUARANTINED_MAX, QuarantineEntry, seconds_left
from scentd.model import Sender
from scentd.prefix import Prefix
from scentd.system import nft
from scentd.system.nft import Nftables

TABLE = {"family": "inet", "name": "scentd"}
IN_TABLE = {"family": "inet", "table": "scentd"}
HOOKS = {"prerouting": -310, "verified": -290}  # chains with their priorities, before and behind the queue
HEARD_RATE = 1000  # packets a second: some hundredths of what a queue can take
# What a packet with a scent has: an IPv4 header longer than without options, or IPv6 destination options.
SCENTED: dict[str, dict[str, Any]] = {
    "ipv4": {"match": {"op": ">", "left": {"payload": {"protocol": "ip", "field": "hdrlength"}}, "right": 5}},
    "ipv6": {"match": {"op": "==", "left": {"payload": {"protocol": "ip6", "field": "nexthdr"}}, "right": 60}},
}
FIRST = ("lo", "heard")  # rules that stand before all others of their chain
SET_SIZE = 2 * QUARANTINED_MAX  # the set holds a renewed element twice until the transaction ends
TIMEOUT_SLACK = 2.0  # seconds; nftables counts whole ones, rounded up
COUNTERS = ("dropped_ipv4", "dropped_ipv6")


class QuarantineTable:
    """The table of this network namespace. Raises HostError if nftables refuses. Belongs to one thread."""

    name = "quarantine"
    resource = ""

    def __init__(self) -> None:
        self._nft: Nftables | None = None

    def apply(self, resources: Mapping[Sender, QuarantineEntry], now: float) -> int:
        return self.quarantine(seconds_left(resources, now))

    def quarantine(self, want: Mapping[Prefix, float]) -> int:
        """Quarantine exactly these prefixes, each for so many seconds from now; return the number of changes."""
        listing = self._listing()
        chains = [item["chain"] for item in listing if "chain" in item]
        if any(HOOKS.get(chain["name"]) != chain.get("prio") for chain in chains):  # another version's
            self.remove()
            listing = []
        ended, new = difference(elements(listing), want)
        commands = self._setup_commands(listing, {set_name(p) for p in want})
        commands += release(ended)
        commands += isolate(new)
        if commands:
            self._run(commands)
        return len(ended) + len(new)

    def read(self) -> dict[Prefix, float]:
        """The quarantined prefixes in the kernel -> seconds left, in whole seconds."""
        return elements(self._listing())

    def observe(self) -> dict[str, int]:
        """The number of packets dropped since the table was made."""
        counts = dict.fromkeys(COUNTERS, 0)
        for item in self._listing():
            if "counter" in item and item["counter"]["name"] in counts:
                counts[item["counter"]["name"]] = item["counter"]["packets"]
        return counts

    def remove(self) -> bool:
        """Remove the table; return whether there was one."""
        if not self._exists():
            return False
        self._run([{"add": {"table": TABLE}}, {"delete": {"table": TABLE}}])
        return True

    def close(self) -> None:
        """Free the library's context; the table in the kernel stays."""
        if self._nft is not None:
            self._nft.close()
            self._nft = None

    def _run(self, commands: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self._nft = self._nft or Nftables()
        return self._nft.run(commands)

    def _exists(self) -> bool:
        return bool(self._listing())

    def _listing(self) -> list[dict[str, Any]]:
        self._nft = self._nft or Nftables()
        return self._nft.table(TABLE["name"]) or []

    def _setup_commands(self, listing: list[dict[str, Any]], sets: set[str]) -> list[dict[str, Any]]:
        """Commands for missing parts of the table. `add` of an existing table, chain, counter or set is harmless."""
        there = {(r["chain"], r.get("comment")) for item in listing if (r := item.get("rule"))}
        existing = {item["set"]["name"] for item in listing if "set" in item}
        rules = wanted_rules(sets)
        if sets <= existing and all((chain, name) in there for chain, name, _ in rules):
            return []
        hook = {"type": "filter", "hook": "prerouting", "policy": "accept"}
        commands: list[dict[str, Any]] = [{"add": {"table": TABLE}}]
        for chain, priority in HOOKS.items():
            commands.append({"add": {"chain": {**IN_TABLE, "name": chain, **hook, "prio": priority}}})
        commands += [{"add": {"chain": {**IN_TABLE, "name": f"hear_{family}"}}} for family in SCENTED]
        commands += [{"add": {"counter": {**IN_TABLE, "name": name}}} for name in COUNTERS]
        for name in sorted(sets):
            kind = {"type": f"{family_of(name)}_addr", "flags": ["timeout"], "size": SET_SIZE}
            commands.append({"add": {"set": {**IN_TABLE, "name": name, **kind}}})
        for chain, name, expression in rules:
            if (chain, name) not in there:
                verb = "insert" if name in FIRST else "add"
                commands.append({verb: {"rule": {**IN_TABLE, "chain": chain, "comment": name, "expr": expression}}})
        return commands


class QuarantineActuators(ActuatorKind):
    def actuators(self, config: Config) -> list[Actuator]:
        return [QuarantineTable()] if is_configured(config) else []

    def notes(self, config: Config) -> list[str]:
        """What may be cut off, as far as nobody has said what must not be."""
        named = [p.name for p in config.policy if kind_of(p.do) == "quarantine"]
        if not named or config.allocator.protected:
            return []
        return [
            f"policy {', '.join(named)}: may quarantine any address of its peers, as nothing is protected; name this "
            "host's management network and resolvers in allocator.protected"
        ]

    def sweep(self, config: Config) -> None:
        if not is_configured(config):
            self.remove_all()

    def remove_all(self) -> list[str]:
        if not nft.available():
            return []
        with closing(QuarantineTable()) as table:
            return ["nftables table inet scentd"] if table.remove() else []


def is_configured(config: Config) -> bool:
    return any(kind_of(p.do) == "quarantine" for p in config.policy)


def difference(
    current: Mapping[Prefix, float], want: Mapping[Prefix, float]
) -> tuple[list[Prefix], dict[Prefix, float]]:
    """Return (prefixes to release, prefixes to isolate -> seconds). Both arguments map a prefix to its seconds left."""
    ended = [prefix for prefix in current if prefix not in want]
    new = {p: seconds for p, seconds in want.items() if p not in current or abs(current[p] - seconds) > TIMEOUT_SLACK}
    return ended, new


def wanted_rules(sets: Iterable[str]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """(chain, comment, expression) of each rule, in their order."""
    loopback: dict[str, Any] = {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "lo"}}
    limit = {"limit": {"rate": HEARD_RATE, "per": "second", "burst": HEARD_RATE // 10}}
    rules: list[tuple[str, str, list[dict[str, Any]]]] = []
    rules += [(chain, "lo", [loopback, {"return": None}]) for chain in HOOKS]
    for family, looks_scented in SCENTED.items():
        rules.append((f"hear_{family}", "heard", [looks_scented, limit, {"accept": None}]))
        rules.append((f"hear_{family}", "drop", drop(family)))
    for name in sorted(sets):
        family = family_of(name)
        rules.append(("prerouting", name, [comes_from(name), {"goto": {"target": f"hear_{family}"}}]))
        rules.append(("verified", name, [comes_from(name), *drop(family)]))
    return rules


def drop(family: str) -> list[dict[str, Any]]:
    return [{"counter": f"dropped_{family}"}, {"drop": None}]


def comes_from(name: str) -> dict[str, Any]:
    """Match the first bits of the source against the set."""
    family, length = family_of(name), int(name.split("_")[1])
    mask = ip_network(f"{'0.0.0.0' if family == 'ipv4' else '::'}/{length}").netmask
    source: dict[str, Any] = {"payload": {"protocol": "ip" if family == "ipv4" else "ip6", "field": "saddr"}}
    if length < mask.max_prefixlen:
        source = {"&": [source, str(mask)]}
    return {"match": {"op": "==", "left": source, "right": f"@{name}"}}


def family_of(name: str) -> str:
    return name.split("_")[0]


def set_name(prefix: Prefix) -> str:
    return f"ipv{prefix.version}_{prefix.prefixlen}"


def isolate(want: Mapping[Prefix, float]) -> list[dict[str, Any]]:
    """Commands: add, delete, add. Before Linux 6.12 `add` keeps an old timeout, and `delete` of a missing one fails."""
    return [*release(want), *element_commands("add", want)]


def release(prefixes: Iterable[Prefix]) -> list[dict[str, Any]]:
    """Commands: add, delete. The element may have expired by itself; add and delete in one transaction cannot fail."""
    once = dict.fromkeys(prefixes, 1.0)
    return [*element_commands("add", once), *element_commands("delete", once)]


def element_commands(verb: str, timeouts: Mapping[Prefix, float]) -> list[dict[str, Any]]:
    by_set: dict[str, list[dict[str, Any]]] = {}
    for prefix, seconds in timeouts.items():
        timeout = max(1, math.ceil(seconds))  # libnftables takes whole seconds
        element = {"elem": {"val": str(prefix.network_address), "timeout": timeout}}
        by_set.setdefault(set_name(prefix), []).append(element)
    return [{verb: {"element": {**IN_TABLE, "name": name, "elem": items}}} for name, items in by_set.items()]


def elements(listing: Iterable[dict[str, Any]]) -> dict[Prefix, float]:
    """prefix -> seconds left, from a listing of the table."""
    left: dict[Prefix, float] = {}
    for item in listing:
        if "set" not in item or "_" not in item["set"]["name"]:
            continue
        length = item["set"]["name"].split("_")[1]
        for element in item["set"].get("elem", ()):
            if isinstance(element, dict) and "elem" in element:
                inner = element["elem"]
                left[ip_network(f"{inner['val']}/{length}")] = float(inner.get("expires", 0.0))
    return left
