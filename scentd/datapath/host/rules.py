"""The iptables rules that send packets to our queues and refuse what the verifier marked.

Own chains in two tables, IPv4 and IPv6 alike, one transaction a table and family:

    mangle   OUTPUT      -> SCENTD-OUT      to peers: to the stamp queues
             FORWARD     -> SCENTD-FORWARD  the same for our networks' nodes, if asked for
             PREROUTING  -> SCENTD-IN       from peers, with a scent, or anything: to the verify queues
                                            (IPv6 packets of several segments: to queues of their own)
    filter   INPUT, FORWARD (first) -> SCENTD-REJECT   RST or "administratively prohibited", if anybody is to be told

With the offload (datapath/offload) only what its programs leave is sent into our chains: on the way out by interfaces
without a stamper (SCENTD-OTHERS, if there are several with one), on the way in what does not bear the mark
`mark_verified`, which SCENTD-DECIDED takes off again. Where there are only interfaces with a stamper (`rule_free`)
nothing is done in OUTPUT.

A queue's verdict "accept" leaves the rest of the mangle chain out, so our jumps stand
behind the host's own mangle rules. Lines are written as `iptables -S` prints them: what is
there can be compared with what is wanted, and an apply that changes nothing touches nothing.
Address sets (sets.py) must exist before the rules and can go only after them.
"""

from __future__ import annotations

from collections.abc import Sequence

from scentd.config.sections import Config
from scentd.core.offload.coverage import Coverage
from scentd.datapath.family import families
from scentd.datapath.host import iptables, sets

# Without these an IPv6 neighbour is not found, so no queue may stand in their way: ICMPv6 type -> hop limit. Only a
# neighbour's are let past the verifier: RFC 4861 section 7.1 wants 255, which no router lets through; RFC 2710
# section 3 and RFC 3810 section 5 send multicast listener messages with 1.
IPV6_ALWAYS = {**dict.fromkeys((133, 134, 135, 136, 137), 255), **dict.fromkeys((130, 131, 132, 143), 1)}
ICMP_TOO_BIG = {4: "-p icmp -m icmp --icmp-type 3/4", 6: "-p ipv6-icmp -m icmp6 --icmpv6-type 2"}
# What may hold a scent: an IPv4 header of more than five words; a Destination Options header.
HAS_OPTIONS = {4: '-m u32 --u32 "0x0>>0x18&0xf=0x6:0xf"', 6: "-m ipv6header --header ipv6-opts --soft"}
# What may be several segments in one: TCP, and what is longer than most links carry. The kernel cuts them for an
# ordinary queue, and leaves each segment's transport offset behind our header: stripped, it is lost. UDP that was
# merged to no more than this still is. IPv4's header stays as long as it is (wire/ip.py, strip).
WHOLE = ("-p tcp", "-m length --length 1501:65535")
GROUP_TYPES = {4: "BROADCAST,MULTICAST", 6: "MULTICAST"}
PROHIBITED = {4: "icmp-admin-prohibited", 6: "icmp6-adm-prohibited"}


def wanted(config: Config, family: int, served: Coverage | None = None) -> dict[str, list[str]]:
    """The lines of each table, as `iptables -S` prints them. `family` is 4 or 6; None: there is no offload."""
    mangle = outbound(config, family, served) + inbound(config, family, served)
    return {"mangle": [*new_chains(mangle), *mangle], "filter": rejecting(config, family) if rejects(config) else []}


def rejects(config: Config) -> bool:
    """Whether anybody is to be told; a table without rules of anybody costs packets nothing."""
    peers = (t for p in config.peer for t in (p.rejected, p.absent, p.absent_ipv6_fragments))
    return "reject" in (config.verify.rejected, config.verify.absent, *peers)


def rejecting(config: Config, family: int) -> list[str]:
    """What the verifier marked gets an answer."""
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


def outbound(config: Config, family: int, served: Coverage | None = None) -> list[str]:
    """Local packets and, if asked for, forwarded ones of our networks, to the stamp queues."""
    served = served or Coverage()
    mark = config.datapath.mark_stamped
    foreign = f"-m set ! --match-set {sets.name('local', family)} src"
    rules = leaving(served.stamping) if not served.rule_free else []
    if config.stamp.forwarded and (served.stamping or not served.rule_free):
        rules.append("-A FORWARD -j SCENTD-FORWARD")
        if has_prefixes(config):
            rules.append(f"-A SCENTD-FORWARD {foreign} -j RETURN")
        rules += passing(config.datapath.mark_verified, served.stamping)
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
    return [*rules, *never_queued("SCENTD-OUT", family), f"-A SCENTD-OUT {queue}"]


def leaving(stamping: Sequence[str]) -> list[str]:
    """From OUTPUT to SCENTD-OUT goes what leaves by interfaces where no program stamps.

    In as few steps as can be: each of them costs every packet of this host about as much as part of the program.
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


def passing(mark: int, stamping: Sequence[str]) -> list[str]:
    """What is forwarded by a program's interface is marked for it, which sees only the source behind NAT."""
    if not stamping:
        return []
    return [
        *(f"-A SCENTD-FORWARD -o {name} -j MARK --set-xmark {mark:#x}/{mark:#x}" for name in stamping),
        f"-A SCENTD-FORWARD -m mark --mark {mark:#x}/{mark:#x} -j RETURN",
    ]


def inbound(config: Config, family: int, served: Coverage | None = None) -> list[str]:
    """What comes to us from peers, what may hold a scent, and if unscented strangers are unwelcome, all.

    With the offload only what it has not decided.
    """
    first, workers = config.datapath.queue + config.datapath.workers, config.datapath.workers
    bypass = config.verify.fail == "open"
    queue, long = (to_queue(number, workers, bypass) for number in (first, first + workers))

    def queued(match: str) -> list[str]:
        whole = [f"-A SCENTD-IN {what} {match}{long}" for what in WHOLE] if family == 6 else []
        return [*whole, f"-A SCENTD-IN {match}{queue}"]

    rules = [
        *arriving(config.datapath.mark_verified, served),
        "-A SCENTD-IN -i lo -j RETURN",
        f"-A SCENTD-IN {not_ours(config, family)} -j RETURN",
        *never_queued("SCENTD-IN", family),
        # Without the daemon path MTU discovery still works: its packets are not scented by the routers that send them.
        f"-A SCENTD-IN {ICMP_TOO_BIG[family]} {to_queue(first, workers, True)}",
        *queued(f"-m set --match-set {sets.name('verify', family)} src "),
        *queued(f"{HAS_OPTIONS[family]} "),
    ]
    return rules + queued("") if config.verify.absent != "pass" else rules


def arriving(mark: int, served: Coverage | None) -> list[str]:
    """From PREROUTING to SCENTD-IN: all packets, or with the offload what its verifier has not decided.

    What it has goes on without the mark: a packet in it, if it is a tunnel's, would inherit it. In a VRF packets come
    by twice, the second time without it.
    """
    if served is None:
        return ["-A PREROUTING -j SCENTD-IN"]
    return [
        f"-A PREROUTING -m mark ! --mark {mark:#x}/{mark:#x} -j SCENTD-IN",
        f"-A PREROUTING -m mark --mark {mark:#x}/{mark:#x} -j SCENTD-DECIDED",
        f"-A SCENTD-DECIDED -j MARK --set-xmark 0x0/{mark:#x}",
        *(f"-A SCENTD-IN -i {name} -j RETURN" for name in served.vrfs),
    ]


def not_ours(config: Config, family: int) -> str:
    """Matches the destinations that are in none of our networks."""
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


def never_queued(chain: str, family: int) -> list[str]:
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


def apply(config: Config, served: Coverage | None = None) -> bool:
    """Install the rules; the sets must be there. Returns whether anything had to change. Raises HostError.

    If the second family fails the first is left as it is: remove() takes both away.
    """
    changed = False
    for family in families():
        want, have = wanted(config, family, served), iptables.installed(family)
        if not iptables.same(want, have):
            iptables.restore(family, iptables.text(want, have))
            changed = True
    return changed


def remove() -> bool:
    """Take our chains and the jumps to them away, others' rules stay. Returns whether there were any."""
    changed = False
    for family in families():
        lines = iptables.removal(iptables.installed(family))
        if lines:
            iptables.restore(family, lines)
            changed = True
    return changed


def show(config: Config, served: Coverage | None = None) -> str:
    """For people: what apply() would install, and where the host differs."""
    parts = []
    for family in families():
        want, have = wanted(config, family, served), iptables.installed(family)
        state = "as wanted" if iptables.same(want, have) else "differs from what is wanted"
        name = iptables.PROGRAM[family]
        parts.append(f"# {name}: wanted\n{iptables.text(want)}# {name}: installed, {state}")
        parts += [f"{table}: {line}" for table in iptables.TABLES for line in iptables.own(have[table])]
    return "\n".join(parts) + "\n"
