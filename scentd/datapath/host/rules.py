"""The iptables rules that send packets to our queues: those that our nftables table has marked (selection.py).

Own chains in two tables, IPv4 and IPv6 alike, one transaction a table and family:

    raw       PREROUTING        -> SCENTD-IN   to the verify queues (IPv6 packets of several segments: to their own)
    security  OUTPUT, FORWARD   -> SCENTD-OUT  to the stamp queues

A queue's verdict "accept" skips the rest of its table, so our jumps come last. Lines are written as `iptables -S`
prints them, so that the host's rules can be compared with them, and an apply() that changes nothing writes nothing.
"""

from __future__ import annotations

import re

from scentd.config.sections import Config
from scentd.core.offload.coverage import Coverage
from scentd.datapath.family import families
from scentd.datapath.host import iptables

ICMP_TOO_BIG = {4: "-p icmp -m icmp --icmp-type 3/4", 6: "-p ipv6-icmp -m icmp6 --icmpv6-type 2"}
# IPv6 packets that may hold several segments: TCP, and packets longer than most links carry. For an ordinary queue the
# kernel segments them and leaves each segment's transport offset behind our header; after stripping, the segment is
# lost. Merged UDP packets of up to 1500 bytes are still lost. IPv4 is safe: strip() of wire/ip.py keeps its header's
# length.
WHOLE = ("-p tcp", "-m length --length 1501:65535")
QUEUE_NUMBER = re.compile(r"--queue-(?:num|balance) (\d+)")
TABLE_OF = {"SCENTD-OUT": "security", "SCENTD-IN": "raw"}


def build(config: Config, family: int, served: Coverage | None = None) -> dict[str, list[str]]:
    """The lines of each table, as `iptables -S` prints them. `family` is 4 or 6; without offload `served` is None."""
    tables = {"raw": inbound_rules(config, family), "security": outbound_rules(config, served)}
    return {name: [*new_chains(lines), *lines] for name, lines in tables.items()}


def new_chains(rules: list[str]) -> list[str]:
    return [f"-N {chain}" for chain in dict.fromkeys(map(iptables.chain_of, rules)) if iptables.OWN_CHAIN.match(chain)]


def outbound_rules(config: Config, served: Coverage | None = None) -> list[str]:
    """The rules to the stamp queues; none if the programs stamp everything."""
    if served is not None and served.rule_free:
        return []
    hooks = ("OUTPUT", "FORWARD") if config.stamp.forwarded else ("OUTPUT",)
    queue = to_queue(config.datapath.queue, config.datapath.workers, config.stamp.fail == "open")
    return [*(jump(hook, config, "SCENTD-OUT") for hook in hooks), f"-A SCENTD-OUT {queue}"]


def inbound_rules(config: Config, family: int) -> list[str]:
    """The rules to the verify queues."""
    first, workers = config.datapath.queue + config.datapath.workers, config.datapath.workers
    bypass = config.verify.fail == "open"
    queue, long = (to_queue(number, workers, bypass) for number in (first, first + workers))
    return [
        jump("PREROUTING", config, "SCENTD-IN"),
        # Path MTU discovery works without the daemon, too: the routers that send its packets do not stamp them.
        f"-A SCENTD-IN {ICMP_TOO_BIG[family]} {to_queue(first, workers, True)}",
        *(f"-A SCENTD-IN {what} {long}" for what in WHOLE if family == 6),
        f"-A SCENTD-IN {queue}",
    ]


def jump(hook: str, config: Config, chain: str) -> str:
    mark = config.datapath.mark_queued
    return f"-A {hook} -m mark --mark {mark:#x}/{mark:#x} -j {chain}"


def to_queue(first: int, workers: int, bypass: bool) -> str:
    """The NFQUEUE target; with several queues the kernel keeps a flow on one of them."""
    numbers = f"--queue-num {first}" if workers == 1 else f"--queue-balance {first}:{first + workers - 1}"
    return f"-j NFQUEUE {numbers}{' --queue-bypass' if bypass else ''}"


def installed_queue(config: Config) -> int:
    """The first queue of the daemon whose rules are installed; the configured one without rules. Raises HostError."""
    found = [iptables.read_tables(family) for family in families()]
    for chain, offset in (("SCENTD-OUT", 0), ("SCENTD-IN", config.datapath.workers)):
        lines = [line for tables in found for line in tables[TABLE_OF[chain]] if line.startswith(f"-A {chain} ")]
        numbers = [int(n) for line in lines for n in QUEUE_NUMBER.findall(line)]
        if numbers:
            return min(numbers) - offset
    return config.datapath.queue


def apply(config: Config, served: Coverage | None = None) -> bool:
    """Install the rules. Return whether anything had to change. Raises HostError.

    If the second family fails, the rules of the first stay: remove() removes both.
    """
    changed = False
    for family in families():
        want, current = build(config, family, served), iptables.read_tables(family)
        if not iptables.is_applied(want, current):
            iptables.restore(family, iptables.restore_input(want, current))
            changed = True
    return changed


def is_applied(config: Config, served: Coverage | None = None) -> bool:
    """Whether the host's rules are as apply() leaves them. Raises HostError."""
    return all(iptables.is_applied(build(config, f, served), iptables.read_tables(f)) for f in families())


def remove() -> bool:
    """Remove our chains and the jumps to them; others' rules stay. Return whether there were any."""
    changed = False
    for family in families():
        lines = iptables.removal_input(iptables.read_tables(family))
        if lines:
            iptables.restore(family, lines)
            changed = True
    return changed


def show(config: Config, served: Coverage | None = None) -> str:
    """For people: the rules that apply() would install, and where the host differs."""
    parts = []
    for family in families():
        want, current = build(config, family, served), iptables.read_tables(family)
        state = "as wanted" if iptables.is_applied(want, current) else "differs from what is wanted"
        name = iptables.PROGRAM[family]
        parts.append(f"# {name}: wanted\n{iptables.restore_input(want)}# {name}: installed, {state}")
        parts += [f"{table}: {line}" for table in iptables.TABLES for line in iptables.own_lines(current[table])]
    return "\n".join(parts) + "\n"
