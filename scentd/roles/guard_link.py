"""The daemon's side of the guard: tells it what is closed, and learns which queues are free (scentd/guard/)."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path

from scentd.config.sections import Config
from scentd.control.status import GuardStatus
from scentd.core.closed import Closed
from scentd.errors import HostError
from scentd.guard import orders
from scentd.guard.client import GuardClient, write_document

log = logging.getLogger(__name__)

QUEUES_EACH = 3  # of a worker


class GuardLink:
    """One connection for as long as a guard is there. Without one nothing waits, and closed depends on our rules.

    `closed` are the orders that were given last.
    """

    def __init__(self, config: Config) -> None:
        self.closed: Closed | None = None
        self._config = config
        self._client = GuardClient(config.guard.socket)
        self._document = Path(config.daemon.state_dir) / orders.STATE_FILE
        self._lock = asyncio.Lock()
        self._told: orders.Answer | None = None  # how the guard stands; None: there is none

    def free_queues(self) -> int:
        """The first of as many queues as we need, in which no packets wait for us. Blocks. Raises HostError."""
        first, count = self._config.datapath.queue, QUEUES_EACH * self._config.datapath.workers
        if not self._client.connect():
            return first
        banks = [range(first, first + count), range(first + count, first + 2 * count)]
        waited = self._client.ask(orders.Tell()).orphans
        since = [max((waited.get(n, 0.0) for n in bank), default=0.0) for bank in banks]
        chosen = since.index(0.0) if 0.0 in since else since.index(max(since))
        if since[chosen]:  # two daemons have just ended: what waits for the first goes to the second one's queues
            self._client.ask(orders.Release(tuple(banks[chosen])))
        return banks[chosen][0]

    async def order(self, closed: Closed | None) -> None:
        """Tell the guard what is closed, that we verify, and that what waited for our rules may go on.

        Never raises: the packet path does not stop for it.
        """
        async with self._lock:
            try:
                await asyncio.to_thread(self._order, closed)
                self.closed = closed
            except HostError as error:
                log.error("%s", error)

    def _order(self, closed: Closed | None) -> None:
        write_document(self._document, closed)
        if self._client.is_connected() or self._client.connect():
            for order in (orders.Verifying(), orders.Look(), orders.Release()):
                self._told = self._client.ask(order)
        elif closed is not None and self.closed is None:
            log.warning(
                'verify.fail is "closed", and no guard listens on %s: whenever our rules are not there, closed is open '
                "(systemctl start scentd-guard)",
                self._config.guard.socket,
            )

    async def look(self) -> None:
        """Once a second: a guard that has just come learns its orders; one that is there says how it stands."""
        if self._lock.locked():
            return
        async with self._lock:
            if self._client.is_connected():
                with suppress(HostError):  # it has just gone: the next look tells
                    self._told = await asyncio.to_thread(self._client.ask, orders.Tell())
                return
            if self._told is not None:
                log.warning("the guard has gone; systemd starts it anew")
                self._told = None
            if not await asyncio.to_thread(self._client.connect):
                return
        await self.order(self.closed)

    def status(self) -> GuardStatus:
        told = self._told
        if told is None:
            return GuardStatus()
        return GuardStatus(
            connected=True,
            closed=told.closed,
            waiting=told.waiting,
            released=told.released,
            given_up=told.given_up,
            dropped=told.dropped,
            excepted=told.excepted,
        )

    def close(self, release: bool) -> None:
        """The daemon ends. `release`: its rules are gone, so what waits in its queues can go on."""
        if release and self._client.is_connected():
            with suppress(HostError):  # then the guard gives up the queues by itself
                self._client.ask(orders.Release())
        self._client.close()
