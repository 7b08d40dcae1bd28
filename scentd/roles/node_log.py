"""Tells the log which nodes of a network are stale or suspect, once each, and counts how often one became so."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from scentd.model import NodeState

log = logging.getLogger(__name__)

NAMED = 5  # nodes that one line names
PAUSE = 600.0  # seconds for which a node that goes to and fro is not told of again

COUNTERS = ("became_stale", "became_suspect")


class NodeLog:
    def __init__(self, network: str) -> None:
        self._network = network
        self._states: dict[str, str] = {}
        self._told: dict[str, float] = {}  # CLOCK_MONOTONIC
        self.counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))

    def look(self, nodes: Sequence[NodeState], monotonic: float) -> None:
        """`nodes`: all of them, as they are now."""
        changed = [node for node in nodes if node.state != self._states.get(node.name, "fresh")]
        self._states = {node.name: node.state for node in nodes}
        self._told = {name: at for name, at in self._told.items() if name in self._states and monotonic < at + PAUSE}
        for state in ("stale", "suspect"):
            became = [node for node in changed if node.state == state]
            self.counters[f"became_{state}"] += len(became)
            new = [node for node in became if node.name not in self._told]
            self._told |= {node.name: monotonic for node in new}
            if new:
                text = "; ".join(f"{node.name or 'this host'}: {node.reason}" for node in new[:NAMED])
                more = f"; and {len(new) - NAMED} more" if len(new) > NAMED else ""
                log.warning("network %s: %s node %s%s (not repeated soon)", self._network, state, text, more)
        again = [node.name or "this host" for node in changed if node.state == "fresh"]
        if again:
            more = f" and {len(again) - NAMED} more" if len(again) > NAMED else ""
            log.info("network %s: fresh again: node %s%s", self._network, ", ".join(again[:NAMED]), more)
