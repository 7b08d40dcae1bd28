"""Where a network's packets come from, if their addresses do not tell: `network.interface` and `network.mark`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scentd.config.sections import Network

INTERFACE_NAME = re.compile(r"^[A-Za-z0-9_.@-]{1,15}$")  # as nft(8) takes it without escapes
MARK = re.compile(r"^(0x[0-9a-fA-F]{1,8}|[0-9]{1,10})(?:/(0x[0-9a-fA-F]{1,8}|[0-9]{1,10}))?$")


def mark_bits(text: str) -> tuple[int, int]:
    """(value, mask) of a packet mark as `ip rule` writes it; without a mask all bits count. Raises ValueError."""
    found = MARK.match(text)
    value, mask = (int(part or "0xffffffff", 0) for part in found.groups()) if found else (0, 0)
    if not 0 < mask <= 0xFFFFFFFF or value & ~mask or not value:
        raise ValueError(f'{text!r} is no mark; write "VALUE/MASK", e.g. "0x100/0xff00", the value inside the mask')
    return value, mask


def check_origin(network: Network, path: str) -> list[str]:
    problems = [
        f"{path}.interface[{i}]: {name!r} is no interface's name; write at most 15 of letters, digits, _ . @ -"
        for i, name in enumerate(network.interface)
        if not INTERFACE_NAME.match(name)
    ]
    try:
        if network.mark:
            mark_bits(network.mark)
    except ValueError as error:
        problems.append(f"{path}.mark: {error}")
    return problems


def check_origins(networks: Sequence[Network], own: int, forwarded: bool) -> list[str]:
    """Each interface and each mark is one network's. `own`: the bits of our own marks; `forwarded`: stamp.forwarded."""
    problems = []
    interfaces: dict[str, int] = {}
    marks: dict[int, dict[int, int]] = {}  # mask -> value -> network
    for i, network in enumerate(networks):
        if network.interface and network.stamps and not forwarded:
            problems.append(f"network[{i}].interface: what came in is forwarded; set stamp.forwarded = true, too")
        for name in network.interface:
            if interfaces.setdefault(name, i) != i:
                problems.append(f"network[{i}].interface: {name} is network[{interfaces[name]}]'s; give it to one")
        try:
            value, mask = mark_bits(network.mark)
        except ValueError:  # none, or told already
            continue
        if mask & own:
            problems.append(f"network[{i}].mark: its mask {mask:#x} has bits of scentd's own marks; choose other bits")
        if marks.setdefault(mask, {}).setdefault(value, i) != i:
            problems.append(f"network[{i}].mark: network[{marks[mask][value]}] has the same; give each its own")
    return problems + [
        f"network[{i}].mark: a packet can have it and that of network[{other}]; let one mask serve for all networks"
        for one, another in combinations(marks, 2)
        for i, other in both_marked(marks[one], marks[another], one & another)
    ]


def both_marked(one: Mapping[int, int], another: Mapping[int, int], common: int) -> list[tuple[int, int]]:
    """The networks of which a packet can have the marks at once. `common`: bits that are in both masks."""
    seen = {value & common: network for value, network in one.items()}
    return [(i, seen[value & common]) for value, i in another.items() if seen.get(value & common, i) != i]
