"""Tells the log what passes scentd by, once each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from scentd.config.sections import Config
from scentd.datapath.host import bypass
from scentd.datapath.host.bypass import Bypass
from scentd.errors import HostError

log = logging.getLogger(__name__)


class BypassLog:
    def __init__(self) -> None:
        self._found: list[Bypass] = []

    async def look(self, config: Config, unstamping: Sequence[str] | None) -> None:
        """`unstamping`: the ports of bridges on which the offload does not stamp; None without the offload."""
        before = self._found
        try:
            if unstamping is None:
                self._found = await asyncio.to_thread(bypass.read, config)
            else:
                self._found = bypass.at_ports(unstamping if config.stamp.forwarded else ())
        except HostError as error:
            log.debug("what passes the queue by cannot be seen: %s", error)
        for found in self._found:
            if found not in before:
                log.warning("%s: packets of our networks go by without a scent or unverified: %s", *found)

    def names(self) -> list[str]:
        """What passes by now."""
        return [found.what for found in self._found]
