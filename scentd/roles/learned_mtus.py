"""Path MTUs that routers have told one path of this host, for all others: each worker, and the programs.

The programs see no ICMP errors; they need what a worker has learnt to lower what SYNs announce.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import NamedTuple

SECONDS = 600.0  # RFC 1191 section 6.3, RFC 8201 section 4
MAX_LEARNED = 1024  # destinations; each is an entry of a table of the programs


class Learned(NamedTuple):
    mtu: int
    until: float


class LearnedMtus:
    """Times are steady seconds."""

    def __init__(self) -> None:
        self._learned: dict[bytes, Learned] = {}  # by destination, the newest last
        self._changed = False

    def take(self, mtus: Mapping[bytes, int], now: float) -> None:
        """Beyond MAX_LEARNED the oldest goes."""
        for destination, mtu in mtus.items():
            before = self._learned.pop(destination, None)
            self._changed |= before is None or before.mtu != mtu
            self._learned[destination] = Learned(mtu, now + SECONDS)
            if len(self._learned) > MAX_LEARNED:
                del self._learned[next(iter(self._learned))]

    def has_changed(self, now: float) -> bool:
        """Whether the tables must be made anew. The answer makes it so."""
        over = [destination for destination, learned in self._learned.items() if learned.until <= now]
        for destination in over:
            del self._learned[destination]
        changed, self._changed = self._changed or bool(over), False
        return changed

    def limits(self, now: float) -> list[tuple[str, int]]:
        """MTUs by prefix, as a StampTable has them."""
        return [(str(ip_address(d)), learned.mtu) for d, learned in self._learned.items() if learned.until > now]
