"""Takes what the rules about rewritten packets have counted: such packets meet no queue and no program."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from scentd.datapath.host import rewriting
from scentd.datapath.host.host import Host
from scentd.errors import HostError
from scentd.roles.traffic import Traffic

log = logging.getLogger(__name__)


class RewriteCounts:
    """Since this daemon's start; `totals` by outcome. Each peer's packets go to `traffic`."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._seen: Counter[tuple[str, str]] = Counter()  # as the kernel counts, by reason and address
        self.totals: Counter[str] = Counter()

    async def begin(self) -> None:
        """What was counted under an earlier daemon is not ours. Raises HostError."""
        self._seen = await asyncio.to_thread(rewriting.counts)

    async def look(self, host: Host) -> bool:
        """Take the counts of the last second. Return whether the host rewrites packets of which it did not before."""
        try:
            self.take(await asyncio.to_thread(host.rewritten))
            return host.has_news()
        except HostError as error:
            log.debug("what this host rewrites cannot be seen: %s", error)
            return False

    def take(self, counts: Counter[tuple[str, str]]) -> None:
        """A count that has fallen has begun anew, because somebody has removed the table that counts."""
        for (reason, address), total in counts.items():
            before = self._seen[reason, address]
            new = total - before if total >= before else total
            if new:
                outcome = f"unstamped:{reason}"
                self.totals[outcome] += new
                self._traffic.take_outcome(address, outcome, new)
        self._seen = counts
