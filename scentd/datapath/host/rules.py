"""The iptables rules that send packets to our queues and refuse what the verifier marked.

Own chains in two tables, IPv4 and IPv6 alike, one transaction a table and family:

    mangle   OUTPUT      -> SCENTD-OUT      to peers: to the stamp queues
             FORWARD     -> SCENTD-FORWARD  the same for our networks' nodes, if asked for
             PREROUTING  -> SCENTD-IN       from peers, with a scent, or anything: to the verify queues
                                            (IPv6 packets of several segments: to queues of their own)
    filter   INPUT, FORWARD (first) -> SCENTD-REJECT   RST or "administratively prohibited", if a setting is "reject"

With the offload (datapath/offload) our chains get only the packets that its programs leave. Outbound these are the
packets through interfaces without a stamper (by SCENTD-OTHERS, if several interfaces have one). Inbound these are the
packets without the mark `mark_verified`. If every interface has a stamper (`rule_free`), OUTPUT has no rule of ours.

`mark_verified` is also the guard's proof (core/closed.py). marks.py clears it behind the two.

A queue's verdict "accept" skips the rest of the mangle chain, so our jumps come after
the host's own mangle rules. Lines are written as `iptables -S` prints them, so that the
host's rules can be compared with them, and an apply() that changes nothing writes nothing.
Address sets (sets.py) must exist before the rules and can be removed only after them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from scentd.config.sections import Config
from scentd.core.offload.coverage import Coverage
from scentd.datapath.family import families
from scentd.datapath.host import iptables, sets

# ICMPv6 type -> hop limit. Neighbour discovery needs these messages, so no queue may hold them up. Only a neighbour's
# messages pass the verifier: RFC 4861 section 7.1 requires 255, which no packet has after a router; RFC 2710
# section 3 and RFC 3810 section 5 send multicast listener messages with 1.
IPV6_ALWAYS = {**dict.fromkeys((133, 134, 135, 136, 137), 255), **dict.fromkeys((130, 131, 132, 143), 1)}
ICMP_TOO_BIG = {4: "-p icmp -m icmp --icmp-type 3/4", 6: "-p ipv6-icmp -m icmp6 --icmpv6-type 2"}
# Packets that may hold a scent: an IPv4 header of more than five words; a Destination Options header.
HAS_OPTIONS = {4: '-m u32 --u32 "0x0>>0x18&0xf=0x6:0xf"', 6: "-m ipv6header --header ipv6-opts --soft"}
# IPv6 packets that may hold several segments: TCP, and packets longer than most links carry. For an ordinary queue the
# kernel segments them and leaves each segment's transport offset behind our header; after stripping, the segment is
# lost. Merged UDP packets of up to 1500 bytes are still lost. IPv4 is safe: strip() of wire/ip.py keeps its header's
# length.
WHOLE = ("-p tcp", "-m length --length 1501:65535")
GROUP_TYPES = {4: "BROADCAST,MULTICAST", 6: "MULTICAST"}
QUEUE_NUMBER = re.compile(r"--queue-(?:num|balance) (\d+)")
PROHIBITED = {4: "icmp-admin-prohibited", 6: "icmp6-adm-prohibited"}


def build(config: Config, family: int, served: Coverage | None = None) -> dict[str, list[str]]:
    """The lines of each table, as `iptables -S` prints them. `family` is 4 or 6; without offload `served` is None."""
    mangle = outbound_rules(config, family, served) + inbound_rules(config, family, served)
    return {"mangle": [*new_chains(mangle), *mangle], "filter": reject_rules(config, family) if rejects(config) else []}


def rejects(config: Config) -> bool:
    """Whether any treatment is "reject". If not, the filter table stays empty, which costs packets nothing."""
    peers = (t for p in config.peer for t in (p.rejected, p.absent, p.absent_ipv6_fragments))
    return "reject" in (config.verify.rejected, config.verify.absent, *peers)


def reject_rules(config: Config, family: int) -> list[str]:
    """The rules that answer packets which the verifier has marked."""
    mark = config.datapath.mark_rejected
    rejected = f"-m mark --mark {mark:#x}/{mark:#x}"
    return [
        "-N SCENTD-REJECT",
        *(f"-A {chain} {rejected} -j SCENTD-REJECT" for chain in iptables.JUMPS_FIRST),
        "-A SCENTD-REJECT -p tcp -j REJECT --reject-with tcp-reset",
        f"-A SCENTD-REJECT -j REJECT --reject-with {PROHIBITED[family]}",
    ]


def new_chains(rules: list[str]) -> list[str]:
    return [f"-N {chain}" for chain in dict.fromkeys(map(iptables.chain_of, rules)) if iptables.OWN_CHAIN.match(chain)]


def outbound_rules(config: Config, family: int, served: Coverage | None = None) -> list[str]:
    """The rules that send local packets, and forwarded ones of our networks if configured, to the stamp queues."""
    served = served or Coverage()
    mark = config.datapath.mark_stamped
    foreign = f"-m set ! --match-set {sets.name('local', family)} src"
    rules = output_rules(served.stamping) if not served.rule_free else []
    if config.stamp.forwarded and (served.stamping or not served.rule_free):
        rules.append("-A FORWARD -j SCENTD-FORWARD")
        if has_prefixes(config):
            rules.append(f"-A SCENTD-FORWARD {foreign} -j RETURN")
        rules += forward_mark_rules(config.datapath.mark_verified, served.stamping)
    if served.rule_free:
        return rules
    if config.stamp.forwarded:
        rules.append("-A SCENTD-FORWARD -j SCENTD-OUT")
    rules += [
        "-A SCENTD-OUT -o lo -j RETURN",
        f"-A SCENTD-OUT -m mark --mark {mark:#x}/{mark:#x} -j RETURN",
        f"-A SCENTD-OUT -m set ! --match-set {sets.name('stamp', family)} dst -j RETURN",
    ]
    if has_prefixes(config) and not has_whole_host(config):
        rules.append(f"-A SCENTD-OUT {foreign} -j RETURN")
    queue = to_queue(config.datapath.queue, config.datapath.workers, config.stamp.fail == "open")
    return [*rules, *unqueued_rules("SCENTD-OUT", family), f"-A SCENTD-OUT {queue}"]


def output_rules(stamping: Sequence[str]) -> list[str]:
    """The rules from OUTPUT to SCENTD-OUT, for packets that leave through interfaces without a stamper.

    There are as few as possible: each costs every packet of this host as much time as a part of the program.
    """
    if not stamping:
        return ["-A OUTPUT -j SCENTD-OUT"]
    if len(stamping) == 1:
        return [f"-A OUTPUT ! -o {stamping[0]} -j SCENTD-OUT"]
    return [
        "-A OUTPUT -j SCENTD-OTHERS",
        *(f"-A SCENTD-OTHERS -o {name} -j RETURN" for name in stamping),
        "-A SCENTD-OTHERS -j SCENTD-OUT",
    ]


def forward_mark_rules(mark: int, stamping: Sequence[str]) -> list[str]:
    """The rules that mark forwarded packets for an interface's program, which sees only the source after NAT."""
    if not stamping:
        return []
    return [
        *(f"-A SCENTD-FORWARD -o {name} -j MARK --set-xmark {mark:#x}/{mark:#x}" for name in stamping),
        f"-A SCENTD-FORWARD -m mark --mark {mark:#x}/{mark:#x} -j RETURN",
    ]


def inbound_rules(config: Config, family: int, served: Coverage | None = None) -> list[str]:
    """The rules that send packets to the verify queues: packets from peers and packets that may hold a scent.

    Unless verify.absent is "pass", all packets go there. With the offload only those that it has not decided.
    """
    first, workers = config.datapath.queue + config.datapath.workers, config.datapath.workers
    bypass = config.verify.fail == "open"
    queue, long = (to_queue(number, workers, bypass) for number in (first, first + workers))

    def queued(match: str) -> list[str]:
        whole = [f"-A SCENTD-IN {what} {match}{long}" for what in WHOLE] if family == 6 else []
        return [*whole, f"-A SCENTD-IN {match}{queue}"]

    rules = [
        *prerouting_rules(config.datapath.mark_verified, served),
        "-A SCENTD-IN -i lo -j RETURN",
        f"-A SCENTD-IN {foreign_destinations(config, family)} -j RETURN",
        *unqueued_rules("SCENTD-IN", family),
        # Path MTU discovery works without the daemon, too: the routers that send its packets do not stamp them.
        f"-A SCENTD-IN {ICMP_TOO_BIG[family]} {to_queue(first, workers, True)}",
        *queued(f"-m set --match-set {sets.name('verify', family)} src "),
        *queued(f"{HAS_OPTIONS[family]} "),
    ]
    return rules + queued("") if config.verify.absent != "pass" else rules


def prerouting_rules(mark: int, served: Coverage | None) -> list[str]:
    """The rules from PREROUTING to SCENTD-IN: for all packets, or with the offload for those it has not decided.

    In a VRF packets traverse PREROUTING twice, the second time without the mark.
    """
    if served is None:
        return ["-A PREROUTING -j SCENTD-IN"]
    return [
        f"-A PREROUTING -m mark ! --mark {mark:#x}/{mark:#x} -j SCENTD-IN",
        *(f"-A SCENTD-IN -i {name} -j RETURN" for name in served.vrfs),
    ]


def foreign_destinations(config: Config, family: int) -> str:
    """The match for destinations that are in none of our networks."""
    matches = []
    if has_prefixes(config):
        matches.append(f"-m set ! --match-set {sets.name('local', family)} dst")
    if has_whole_host(config):
        matches.append("-m addrtype ! --dst-type LOCAL")
    return " ".join(matches)


def has_prefixes(config: Config) -> bool:
    return any(network.addresses for network in config.network)


def has_whole_host(config: Config) -> bool:
    """A network without addresses, or no network at all, means every address of this host."""
    return not config.network or any(not network.addresses for network in config.network)


def unqueued_rules(chain: str, family: int) -> list[str]:
    rules = [f"-A {chain} -m addrtype --dst-type {GROUP_TYPES[family]} -j RETURN"]
    if family == 6:
        rules += [
            f"-A {chain} -p ipv6-icmp -m icmp6 --icmpv6-type {kind} -m hl --hl-eq {hops} -j RETURN"
            for kind, hops in IPV6_ALWAYS.items()
        ]
    return rules


def to_queue(first: int, workers: int, bypass: bool) -> str:
    """The NFQUEUE target; with several queues the kernel keeps a flow on one of them."""
    numbers = f"--queue-num {first}" if workers == 1 else f"--queue-balance {first}:{first + workers - 1}"
    return f"-j NFQUEUE {numbers}{' --queue-bypass' if bypass else ''}"


def installed_queue(config: Config) -> int:
    """The first queue of the daemon whose rules are installed; the configured one without rules. Raises HostError."""
    lines = [line for family in families() for line in iptables.read_tables(family)["mangle"]]
    for chain, offset in (("SCENTD-OUT", 0), ("SCENTD-IN", config.datapath.workers)):
        numbers = [int(n) for line in lines if chain_in(line) == chain for n in QUEUE_NUMBER.findall(line)]
        if numbers:
            return min(numbers) - offset
    return config.datapath.queue


def chain_in(line: str) -> str:
    return iptables.chain_of(line) if line.startswith("-A ") else ""


def apply(config: Config, served: Coverage | None = None) -> bool:
    """Install the rules; the sets must exist. Return whether anything had to change. Raises HostError.

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
