"""Tells the log what passes the queue by where there is no offload, once each."""

from __future__ import annotations

import asyncio
import logging

from scentd.config.sections import Config
from scentd.datapath.host import bypass
from scentd.datapath.host.bypass import Bypass
from scentd.errors import HostError

log = logging.getLogger(__name__)


class BypassLog:
    def __init__(self) -> None:
        self._found: list[Bypass] = []

    async def look(self, config: Config, offloaded: bool) -> None:
        """With the offload nothing passes by."""
        before = self._found
        try:
            self._found = [] if offloaded else await asyncio.to_thread(bypass.read, config)
        except HostError as error:
            log.debug("what passes the queue by cannot be seen: %s", error)
        for found in self._found:
            if found not in before:
                log.warning("%s: packets of our networks go by without a scent or unverified: %s", *found)

    def names(self) -> list[str]:
        """What passes by now."""
        return [found.what for found in self._found]
