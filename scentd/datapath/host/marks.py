"""Clears `datapath.mark_verified` from packets that have passed the verifier and the guard: table `inet scentd_marks`.

Both are told by the mark: the rules and the guard (scentd/guard/table.py) take it for the proof that a packet was
verified. Behind them it must go before routing, because an `ip rule fwmark` would see it and a tunnel's inner packet
would inherit it. No place in iptables is behind the guard and in front of routing. Every function may raise HostError.
"""

from __future__ import annotations

from contextlib import closing

from scentd.system import nft
from scentd.system.nft import Nftables

NAME = "scentd_marks"
PRIORITY = -148  # the guard has -149


def apply(mark: int) -> None:
    """Clear this mark from now on. The chain is never deleted for it, because that would drop all queued packets."""
    with closing(Nftables()) as tables:
        if mark in cleared(tables):
            return
        tables.run_text(
            f"add table inet {NAME}\n"
            f"add chain inet {NAME} clear {{ type filter hook prerouting priority {PRIORITY}; policy accept; }}\n"
            f"flush chain inet {NAME} clear\n"
            f"add rule inet {NAME} clear meta mark & {mark:#x} == {mark:#x} meta mark set meta mark & "
            f'{mark ^ 0xFFFFFFFF:#x} comment "{mark:#x}"'
        )


def read() -> list[int]:
    """The marks that are cleared."""
    if not nft.available():
        return []
    with closing(Nftables()) as tables:
        return cleared(tables)


def cleared(tables: Nftables) -> list[int]:
    rules = (item.get("rule", {}) for item in tables.table(NAME) or ())
    return [int(rule["comment"], 0) for rule in rules if "comment" in rule]


def remove() -> None:
    """Remove the table. Packets that wait in queues of this namespace are dropped by that."""
    if not nft.available():
        return
    with closing(Nftables()) as tables:
        if tables.table(NAME) is not None:
            tables.run_text(f"delete table inet {NAME}")
