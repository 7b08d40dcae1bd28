"""Keeps with a peer's highest epoch how far below it its stampers may be: its newest profile says that."""

from __future__ import annotations

from collections.abc import Callable

from scentd.bus.local import LocalBus
from scentd.datapath.offload.offload import Offload
from scentd.model import StatedLag
from scentd.state.epochs import Epochs


class LagKeeper:
    """`epochs` is None before there are pairs."""

    def __init__(self, bus: LocalBus, offload: Callable[[], Offload | None]) -> None:
        """`offload`: the programs, if they are in place."""
        self.epochs: Epochs | None = None
        self._offload = offload
        bus.subscribe(StatedLag, self._keep)

    def _keep(self, stated: StatedLag) -> None:
        """Write it where workers and programs read it; they go by it from the next packet on."""
        for marks in (self.epochs, self._offload()):
            if marks is not None:
                marks.set_lag(*stated)
