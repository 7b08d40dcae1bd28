"""iptables rules as its programs print and take them: reading, picking out our own, the input for a change.

Our own are the chains whose names begin with SCENTD- and the rules that name one; all others stay untouched.
"""

from __future__ import annotations

import logging
import re
import subprocess
from collections.abc import Mapping

from scentd.errors import HostError
from scentd.system import debian

log = logging.getLogger(__name__)

Tables = Mapping[str, list[str]]  # table -> lines as `iptables -t TABLE -S` prints them

TABLES = ("raw", "security")
PROGRAM = {4: "iptables", 6: "ip6tables"}
WAIT = ("-w", "10")  # seconds for another program that holds the lock
TIMEOUT = 30.0
OWN_CHAIN = re.compile(r"^SCENTD-[A-Z]+$")


def read_tables(family: int) -> dict[str, list[str]]:
    """All rules of the tables that we use, our own and others', by table. Raises HostError."""
    return {table: run([PROGRAM[family], *WAIT, "-t", table, "-S"]).splitlines() for table in TABLES}


def restore_input(want: Tables, current: Tables | None = None) -> str:
    """Input for `iptables-restore --noflush` that turns the current rules into those of `want`."""
    before = {table: (current or {}).get(table, []) for table in TABLES}
    return "".join(transaction(t, want[t], before[t]) for t in TABLES if want[t] or own_lines(before[t]))


def removal_input(current: Tables) -> str:
    """Input for `iptables-restore --noflush` that removes everything of ours; "" if there is nothing of ours."""
    return "".join(transaction(table, [], current[table]) for table in TABLES if own_lines(current.get(table, [])))


def transaction(table: str, want: list[str], current: list[str]) -> str:
    """Input for one table: delete our jumps, empty or delete our chains, then add the rules of `want`."""
    chains = [line.split()[1] for line in want if line.startswith("-N ")]
    old = [line.split()[1] for line in current if line.startswith("-N ") and OWN_CHAIN.match(line.split()[1])]
    unused = [chain for chain in old if chain not in chains]
    lines = [
        f"*{table}",
        *(f":{chain} - [0:0]" for chain in chains),  # makes the chain, or empties it
        *(
            "-D" + line[2:]
            for line in own_lines(current)
            if line.startswith("-A ") and not OWN_CHAIN.match(chain_of(line))
        ),
        *(f"-F {chain}" for chain in unused),
        *(f"-X {chain}" for chain in unused),
        *(line for line in want if not line.startswith("-N ")),
        "COMMIT",
    ]
    return "\n".join(lines) + "\n"


def chain_of(line: str) -> str:
    return line.split()[1]


def own_lines(lines: list[str]) -> list[str]:
    """The lines that make, fill or jump to our chains."""
    return [line for line in lines if any(OWN_CHAIN.match(word) for word in line.split())]


def is_applied(want: Tables, current: Tables) -> bool:
    """Whether the host has the rules of `want` in their order, and no other rule of ours."""
    for table in TABLES:
        lines = current.get(table, [])
        if sorted(own_lines(lines)) != sorted(want[table]):
            return False
        for chain in {chain_of(line) for line in want[table] if line.startswith("-A ")}:
            order = [line for line in want[table] if line.startswith(f"-A {chain} ")]
            if own_lines([line for line in lines if line.startswith(f"-A {chain} ")]) != order:
                return False
    return True


def restore(family: int, lines: str) -> None:
    log.info("%s: installing %d lines", PROGRAM[family], lines.count("\n"))
    run([f"{PROGRAM[family]}-restore", "--noflush", *WAIT], lines)


def run(argv: list[str], stdin: str = "") -> str:
    """Run a program and return its output. Raises HostError with the way out."""
    try:
        result = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except FileNotFoundError:
        raise HostError(f"{argv[0]}: not found; {debian.install('iptables')}") from None
    except subprocess.TimeoutExpired:
        raise HostError(f"{argv[0]}: did not end within {TIMEOUT:.0f} s; does another program hold its lock?") from None
    if result.returncode:
        raise HostError(f"{argv[0]}: {explain(result.stderr, stdin)}")
    return result.stdout


def explain(stderr: str, stdin: str) -> str:
    """Describe a refusal in one line: the reason, the rule, the way out."""
    message = " ".join(line.strip() for line in stderr.splitlines() if line.strip() and not line.startswith("Try `"))
    number = re.search(r"line:? (\d+)", message)
    if number and 0 < int(number[1]) <= len(stdin.splitlines()):
        message += f" ({stdin.splitlines()[int(number[1]) - 1]})"
    missing = re.search(r"Extension (\w+) revision|Couldn't load (?:match|target) `(\w+)'", message)
    if missing:
        name = missing[1] or missing[2]
        return f"{message}; the match or target {name!r} is missing: kernel module xt_{name}, package iptables"
    if "ermission denied" in message or "Operation not permitted" in message:
        return f"{message}; scentd needs CAP_NET_ADMIN"
    return message
