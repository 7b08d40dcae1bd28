"""Rules of others that change the packet marks of scentd between where these are set and where they are read.

The BPF verifier and our nftables table set marks, the queue's rules in iptables raw and the guard right behind read
them (datapath/host/selection.py). What comes later finds them cleared.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import closing

from scentd.config.sections import Datapath
from scentd.datapath.family import families
from scentd.datapath.host import iptables
from scentd.doctor import examine
from scentd.doctor.examine import Check
from scentd.errors import HostError
from scentd.guard.table import PRIORITY
from scentd.system.nft import Nftables

ALL_BITS = 0xFFFFFFFF
IPTABLES = ("raw", "mangle", "nat", "filter", "security")  # tables that iptables itself lists
TABLE = re.compile(r"^table (\S+) (\S+) \{")
CHAIN = re.compile(r"^\tchain (\S+) \{")
HOOK = re.compile(r"^\t\ttype \S+ hook prerouting (?:device \S+ )?priority (-?\d+);")
VERDICT = re.compile(r"\b(?:jump|goto) ([^\s,}]+)")
SETS_MARK = re.compile(r"(?<!ct )\b(?:meta )?mark set (?P<value>.*)$")
KEEPS_OTHERS = re.compile(r"^(?:meta )?mark (?P<how>[&|^]|and|or|xor) (?P<bits>0x[0-9a-f]+|\d+)(?:$| [^&|^])")


def check_marks(datapath: Datapath) -> Check:
    name, ours = "packet marks", datapath.mark_verified | datapath.mark_queued
    try:
        found = [*changing_iptables(ours), *changing_nftables(nftables_text(), ours)]
    except HostError as error:
        return Check(name, "warning", str(error), "run as root, or see what changes packet marks in PREROUTING")
    if found:
        return Check(
            name,
            "warning",
            f"{'; '.join(found)}: changes datapath.mark_verified or mark_queued ({ours:#x}) before they are read",
            "let these rules come later (iptables mangle, nftables priority -150), give them a mask without the bits, "
            "as in --set-mark 0x5/0xff or `meta mark set meta mark | 0x5`, or choose other bits in [datapath]",
        )
    return Check(name, "yes", f"nobody else's rule changes {ours:#x} before it is read")


# -- iptables ------------------------------------------------------------


def changing_iptables(ours: int) -> Iterator[str]:
    """Raises HostError."""
    for family in families():
        program = iptables.PROGRAM[family]
        made = (examine.read(f"/proc/net/ip{'' if family == 4 else '6'}_tables_names") or "").split()
        # iptables-legacy makes a table by looking at it.
        if "legacy" not in iptables.run([program, "--version"]) or "raw" in made:
            lines = iptables.run([program, *iptables.WAIT, "-t", "raw", "-S"]).splitlines()
            yield from (f"{program} -t raw {rule}" for rule in changing(lines, ours))


def changing(lines: Sequence[str], mark: int) -> list[str]:
    """Of a table's rules those that packets in PREROUTING can meet and that change bits of `mark`; ours are not."""
    table: dict[str, list[list[str]]] = {}
    for line in lines:
        kind, chain, *words = shlex.split(line)
        if kind == "-A":
            table.setdefault(chain, []).append(words)
    reached, found = ["PREROUTING"], []
    for chain in reached:
        for words in table.get(chain, []):
            options = dict(itertools.pairwise(words))
            target = options.get("-j") or options.get("-g") or ""
            if target in table and target not in reached and not iptables.OWN_CHAIN.match(target):
                reached.append(target)
            if changed_bits(target, options) & mark:
                found.append(shlex.join(["-A", chain, *words]))
    return found


def changed_bits(target: str, options: dict[str, str]) -> int:
    """Bits of the packet mark that a rule may change; `options` has for each of its words the next."""
    if target == "CONNMARK" and "--restore-mark" in options:
        return int(options["--nfmask"], 0) | int(options["--ctmask"], 0)
    given = {"MARK": "--set-xmark", "TPROXY": "--tproxy-mark"}.get(target)
    if given is None:
        return 0
    value, _, mask = options[given].partition("/")
    return int(value, 0) | int(mask, 0)


# -- nftables ------------------------------------------------------------


def nftables_text() -> str:
    """All tables as nft(8) prints them, priorities as numbers. Raises HostError."""
    with closing(Nftables()) as tables:
        return tables.ruleset()


def changing_nftables(text: str, mark: int) -> Iterator[str]:
    """Of all rules those that packets can meet in PREROUTING by the time marks are read, and that change bits of it."""
    for name, chains in tables_in(text).items():
        reached = [chain for chain, lines in chains.items() if is_early(lines)]
        for chain in reached:
            for line in chains.get(chain, ()):
                reached += [to for to in VERDICT.findall(line) if to in chains and to not in reached]
                if nft_changed_bits(line) & mark:
                    yield f"nft table {name}, chain {chain}: {line.strip()}"


def tables_in(text: str) -> dict[str, dict[str, list[str]]]:
    """Table -> chain -> its lines, without our tables and those of iptables."""
    tables: dict[str, dict[str, list[str]]] = {}
    lines: list[str] = []
    chains: dict[str, list[str]] = {}
    for line in text.splitlines():
        if table := TABLE.match(line):
            chains = {}
            if not table[2].startswith("scentd") and not (table[1] in ("ip", "ip6") and table[2] in IPTABLES):
                tables[f"{table[1]} {table[2]}"] = chains
        elif chain := CHAIN.match(line):
            lines = chains.setdefault(chain[1], [])
        elif line.startswith("\t\t"):
            lines.append(line)
    return tables


def is_early(lines: Sequence[str]) -> bool:
    hooks = (HOOK.match(line) for line in lines)
    return any(hook is not None and int(hook[1]) <= PRIORITY for hook in hooks)


def nft_changed_bits(line: str) -> int:
    """Bits of the packet mark that a rule may change."""
    found = SETS_MARK.search(line)
    if found is None:
        return 0
    kept = KEEPS_OTHERS.match(found["value"])
    if kept is None:
        return ALL_BITS
    bits = int(kept["bits"], 0)
    return bits ^ ALL_BITS if kept["how"] in ("&", "and") else bits
