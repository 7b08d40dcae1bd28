"""The bus inside one process: a plain call passes a value to the subscribers of its type.

The values are those of model.py that pass between roles. The bus keeps no values: a subscriber gets only those that
are published after it has subscribed. Belongs to one thread.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

log = logging.getLogger(__name__)

Value = TypeVar("Value")


class LocalBus:
    """`failures` counts subscribers' exceptions, by the type of the value; the publisher goes on."""

    def __init__(self) -> None:
        self.failures: Counter[str] = Counter()
        self._subscribers: dict[type, list[Callable[[Any], None]]] = {}

    def subscribe(self, kind: type[Value], take: Callable[[Value], None]) -> None:
        """`take` gets every value of exactly this type, in the order of publishing."""
        self._subscribers.setdefault(kind, []).append(take)

    def publish(self, value: object) -> None:
        """Hand a value to its subscribers. An exception of one is logged and counted; the others get the value, too."""
        for take in self._subscribers.get(type(value), ()):
            try:
                take(value)
            except Exception:  # the packet path, a role or a monitor must not stop for another one
                self.failures[type(value).__name__] += 1
                log.exception("%s could not be taken", type(value).__name__)
