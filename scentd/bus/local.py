"""The bus inside one process: a value goes to whoever takes values of its type, by a plain call.

The values are those of model.py that pass between roles. Nothing is kept, nothing waits: whoever subscribes later
has missed what was published before. Belongs to one thread.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

log = logging.getLogger(__name__)

Value = TypeVar("Value")


class LocalBus:
    """`failures` counts values that a subscriber could not take, by type: a publisher never stops for one."""

    def __init__(self) -> None:
        self.failures: Counter[str] = Counter()
        self._subscribers: dict[type, list[Callable[[Any], None]]] = {}

    def subscribe(self, kind: type[Value], take: Callable[[Value], None]) -> None:
        """`take` gets every value of exactly this type, in the order of publishing."""
        self._subscribers.setdefault(kind, []).append(take)

    def publish(self, value: object) -> None:
        """Hand a value to its subscribers. What one of them raises is logged and counted; the others get it."""
        for take in self._subscribers.get(type(value), ()):
            try:
                take(value)
            except Exception:  # the packet path, a role or a monitor must not stop for another one
                self.failures[type(value).__name__] += 1
                log.exception("%s could not be taken", type(value).__name__)
