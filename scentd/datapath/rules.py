"""The iptables rules that send packets to our queues and refuse what the verifier marked.

Own chains in two tables, IPv4 and IPv6 alike, one transaction a table and family:

    mangle   OUTPUT      -> SCENTD-OUT      to peers: to the stamp queues
             FORWARD     -> SCENTD-FORWARD  the same for our networks' nodes, if asked for
             PREROUTING  -> SCENTD-IN       from peers, with a scent, or anything: to the verify queues
                                            (IPv6 packets of several segments: to queues of their own)
    filter   INPUT, FORWARD (first) -> SCENTD-REJECT   RST or "administratively prohibited", if anybody is to be told

With the offload (ebpf.py) only what is left of its programs is sent into our chains: on the way out by interfaces
without a stamper (SCENTD-OTHERS, if there are several with one), on the way in what does not bear the mark
`mark_verified`, which SCENTD-DECIDED takes off again. Where there are only interfaces with a stamper (`direct`)
nothing is done in OUTPUT.

A queue's verdict "accept" leaves the rest of the mangle chain out, so our jumps stand
behind the host's own mangle rules. Lines are written as `iptables -S` prints them: what is
there can be compared with what is wanted, and an apply that changes nothing touches nothing.
Address sets (sets.py) must exist before the rules and can go only after them.
"""

from __future__ import annotations

import logging
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from scentd.config import Config
from scentd.datapath import sets
from scentd.errors import HostError

log = logging.getLogger(__name__)

Tables = Mapping[str, list[str]]  # table -> lines as `iptables -t TABLE -S` prints them

TABLES = ("mangle", "filter")
PROGRAM = {4: "iptables", 6: "ip6tables"}
WAIT = ("-w", "10")  # seconds for another program that holds the lock
TIMEOUT = 30.0
OWN_CHAIN = re.compile(r"^SCENTD-[A-Z]+$")
JUMPS_FIRST = ("INPUT", "FORWARD")  # in filter: before a rule accepts established connections

# Without these an IPv6 neighbour is not found, so no queue may stand in their way: ICMPv6 type -> hop limit. Only a
# neighbour's are let past the verifier: RFC 4861 section 7.1 wants 255, which no router lets through; RFC 2710
# section 3 and RFC 3810 section 5 send multicast listener messages with 1.
IPV6_ALWAYS = {**dict.fromkeys((133, 134, 135, 136, 137), 255), **dict.fromkeys((130, 131, 132, 143), 1)}
ICMP_TOO_BIG = {4: "-p icmp -m icmp --icmp-type 3/4", 6: "-p ipv6-icmp -m icmp6 --icmpv6-type 2"}
# What may hold a scent: an IPv4 header of more than five words; a Destination Options header.
HAS_OPTIONS = {4: '-m u32 --u32 "0x0>>0x18&0xf=0x6:0xf"', 6: "-m ipv6header --header ipv6-opts --soft"}
# Longer than what most links carry: several segments in one. The kernel cuts them for an ordinary queue, and leaves
# each segment's transport offset behind our header: stripped, it is lost. Several small segments that are no longer
# than this together still are. IPv4's header stays as long as it is (wire/ip.py, strip).
LONG = "-m length --length 1501:65535"
GROUP_TYPES = {4: "BROADCAST,MULTICAST", 6: "MULTICAST"}
PROHIBITED = {4: "icmp-admin-prohibited", 6: "icmp6-adm-prohibited"}


class Offloaded(NamedTuple):
    """Names of interfaces: those to peers by which the program stamps; VRFs, where packets come by once more.

    `direct`: packets to peers leave by no other interface, so none has to be looked at in OUTPUT.
    """

    stamping: tuple[str, ...] = ()
    vrfs: tuple[str, ...] = ()
    direct: bool = False


def wanted(config: Config, family: int, offloaded: Offloaded | None = None) -> dict[str, list[str]]:
    """The lines of each table, as `iptables -S` prints them. `family` is 4 or 6; None: there is no offload."""
    mangle = outbound(config, family, offloaded) + inbound(config, family, offloaded)
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
        *(f"-A {chain} {rejected} -j SCENTD-REJECT" for chain in JUMPS_FIRST),
        "-A SCENTD-REJECT -p tcp -j REJECT --reject-with tcp-reset",
        f"-A SCENTD-REJECT -j REJECT --reject-with {PROHIBITED[family]}",
    ]


def new_chains(rules: list[str]) -> list[str]:
    return [f"-N {chain}" for chain in dict.fromkeys(map(chain_of, rules)) if OWN_CHAIN.match(chain)]


def outbound(config: Config, family: int, offloaded: Offloaded | None = None) -> list[str]:
    """Local packets and, if asked for, forwarded ones of our networks, to the stamp queues."""
    offloaded = offloaded or Offloaded()
    mark = config.datapath.mark_stamped
    foreign = f"-m set ! --match-set {sets.name('local', family)} src"
    rules = leaving(offloaded.stamping) if not offloaded.direct else []
    if config.stamp.forwarded:
        rules.append("-A FORWARD -j SCENTD-FORWARD")
        if has_prefixes(config):
            rules.append(f"-A SCENTD-FORWARD {foreign} -j RETURN")
        rules += passing(config.datapath.mark_verified, offloaded.stamping)
    if offloaded.direct:
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


def inbound(config: Config, family: int, offloaded: Offloaded | None = None) -> list[str]:
    """What comes to us from peers, what may hold a scent, and if unscented strangers are unwelcome, all.

    With the offload only what it has not decided.
    """
    first, workers = config.datapath.queue + config.datapath.workers, config.datapath.workers
    bypass = config.verify.fail == "open"
    queue, long = (to_queue(number, workers, bypass) for number in (first, first + workers))

    def queued(match: str) -> list[str]:
        short = f"-A SCENTD-IN {match}{queue}"
        return [f"-A SCENTD-IN {LONG} {match}{long}", short] if family == 6 else [short]

    rules = [
        *arriving(config.datapath.mark_verified, offloaded),
        "-A SCENTD-IN -i lo -j RETURN",
        f"-A SCENTD-IN {not_ours(config, family)} -j RETURN",
        *never_queued("SCENTD-IN", family),
        # Without the daemon path MTU discovery still works: its packets are not scented by the routers that send them.
        f"-A SCENTD-IN {ICMP_TOO_BIG[family]} {to_queue(first, workers, True)}",
        *queued(f"-m set --match-set {sets.name('verify', family)} src "),
        *queued(f"{HAS_OPTIONS[family]} "),
    ]
    return rules + queued("") if config.verify.absent != "pass" else rules


def arriving(mark: int, offloaded: Offloaded | None) -> list[str]:
    """From PREROUTING to SCENTD-IN: all packets, or with the offload what its verifier has not decided.

    What it has goes on without the mark: a packet in it, if it is a tunnel's, would inherit it. In a VRF packets come
    by twice, the second time without it.
    """
    if offloaded is None:
        return ["-A PREROUTING -j SCENTD-IN"]
    return [
        f"-A PREROUTING -m mark ! --mark {mark:#x}/{mark:#x} -j SCENTD-IN",
        f"-A PREROUTING -m mark --mark {mark:#x}/{mark:#x} -j SCENTD-DECIDED",
        f"-A SCENTD-DECIDED -j MARK --set-xmark 0x0/{mark:#x}",
        *(f"-A SCENTD-IN -i {name} -j RETURN" for name in offloaded.vrfs),
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


def text(want: Tables, have: Tables | None = None) -> str:
    """Input for `iptables-restore --noflush` that turns what is there (`have`) into what is wanted."""
    there = {table: (have or {}).get(table, []) for table in TABLES}
    return "".join(transaction(t, want[t], there[t]) for t in TABLES if want[t] or own(there[t]))


def removal(have: Tables) -> str:
    """Input for `iptables-restore --noflush` that takes all that is ours away; "" if nothing is there."""
    return "".join(transaction(table, [], have[table]) for table in TABLES if own(have.get(table, [])))


def transaction(table: str, want: list[str], have: list[str]) -> str:
    """One table: our jumps out, our chains emptied or removed, then the wanted rules."""
    chains = [line.split()[1] for line in want if line.startswith("-N ")]
    old = [line.split()[1] for line in have if line.startswith("-N ") and OWN_CHAIN.match(line.split()[1])]
    gone = [chain for chain in old if chain not in chains]
    lines = [
        f"*{table}",
        *(f":{chain} - [0:0]" for chain in chains),  # makes the chain, or empties it
        *("-D" + line[2:] for line in own(have) if line.startswith("-A ") and not OWN_CHAIN.match(chain_of(line))),
        *(f"-F {chain}" for chain in gone),
        *(f"-X {chain}" for chain in gone),
        *(placed(table, line) for line in want if not line.startswith("-N ")),
        "COMMIT",
    ]
    return "\n".join(lines) + "\n"


def placed(table: str, line: str) -> str:
    chain = chain_of(line)
    return line.replace(f"-A {chain}", f"-I {chain} 1", 1) if table == "filter" and chain in JUMPS_FIRST else line


def chain_of(line: str) -> str:
    return line.split()[1]


def own(lines: list[str]) -> list[str]:
    """Those that make, fill or jump to our chains."""
    return [line for line in lines if any(OWN_CHAIN.match(word) for word in line.split())]


def same(want: Tables, have: Tables) -> bool:
    """Is all that is wanted there, in its order, and nothing else of ours?"""
    for table in TABLES:
        found = have.get(table, [])
        if sorted(own(found)) != sorted(want[table]):
            return False
        for chain in {chain_of(line) for line in want[table] if line.startswith("-A ")}:
            order = [line for line in want[table] if line.startswith(f"-A {chain} ")]
            there = [line for line in found if line.startswith(f"-A {chain} ")]
            first = table == "filter" and chain in JUMPS_FIRST
            if (there[:1] if first else own(there)) != order:
                return False
    return True


def families() -> tuple[int, ...]:
    """4, and 6 unless the kernel runs without IPv6."""
    return (4, 6) if Path("/proc/sys/net/ipv6").exists() else (4,)


def installed(family: int) -> dict[str, list[str]]:
    """All rules of the tables we use, ours and others', by table. Raises HostError."""
    return {table: run([PROGRAM[family], *WAIT, "-t", table, "-S"]).splitlines() for table in TABLES}


def apply(config: Config, offloaded: Offloaded | None = None) -> bool:
    """Install the rules; the sets must be there. Returns whether anything had to change. Raises HostError.

    If the second family fails the first is left as it is: remove() takes both away.
    """
    changed = False
    for family in families():
        want, have = wanted(config, family, offloaded), installed(family)
        if not same(want, have):
            restore(family, text(want, have))
            changed = True
    return changed


def remove() -> bool:
    """Take our chains and the jumps to them away, others' rules stay. Returns whether there were any."""
    changed = False
    for family in families():
        lines = removal(installed(family))
        if lines:
            restore(family, lines)
            changed = True
    return changed


def show(config: Config, offloaded: Offloaded | None = None) -> str:
    """For people: what apply() would install, and where the host differs."""
    parts = []
    for family in families():
        want, have = wanted(config, family, offloaded), installed(family)
        state = "as wanted" if same(want, have) else "differs from what is wanted"
        parts.append(f"# {PROGRAM[family]}: wanted\n{text(want)}# {PROGRAM[family]}: installed, {state}")
        parts += [f"{table}: {line}" for table in TABLES for line in own(have[table])]
    return "\n".join(parts) + "\n"


def restore(family: int, lines: str) -> None:
    log.info("%s: installing %d lines", PROGRAM[family], lines.count("\n"))
    run([f"{PROGRAM[family]}-restore", "--noflush", *WAIT], lines)


def run(argv: list[str], stdin: str = "") -> str:
    """What the program prints. Raises HostError with the way out."""
    try:
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except FileNotFoundError:
        raise HostError(f"{argv[0]}: not found; install the package iptables") from None
    except subprocess.TimeoutExpired:
        raise HostError(f"{argv[0]}: no end after {TIMEOUT:.0f} s; does another program hold its lock?") from None
    if done.returncode:
        raise HostError(f"{argv[0]}: {explain(done.stderr, stdin)}")
    return done.stdout


def explain(stderr: str, stdin: str) -> str:
    """One line about a refusal: what, in which rule, and the way out."""
    message = " ".join(line.strip() for line in stderr.splitlines() if line.strip() and not line.startswith("Try `"))
    number = re.search(r"line:? (\d+)", message)
    if number and 0 < int(number[1]) <= len(stdin.splitlines()):
        message += f" ({stdin.splitlines()[int(number[1]) - 1]})"
    missing = re.search(r"Extension (\w+) revision|Couldn't load (?:match|target) `(\w+)'", message)
    if missing:
        name = missing[1] or missing[2]
        return f"{message}; the match or target {name!r} is missing: kernel module xt_{name}, package iptables"
    if re.search(r"Set \S+ doesn't exist", message):
        return f"{message}; make the address sets first"
    if "ermission denied" in message or "Operation not permitted" in message:
        return f"{message}; scentd needs CAP_NET_ADMIN"
    return message
