"""What carries out a kind of action on this host: one subclass of ActuatorKind a kind, in a file of its own.

A level-triggered kind has standing actuators, each of which takes the whole desired state of its kind and may be
given the same one again (reconcile.py drives them). An edge kind carries a Oneshot out (oneshot.py).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol

from scentd.config.sections import Config
from scentd.errors import HostError
from scentd.model import Oneshot


class Actuator(Protocol):
    """One thing on the host that is kept as desired. Belongs to one thread; everything may raise HostError."""

    name: str  # in log lines and counters: quarantine, bandwidth_eth0

    def apply(self, resources: Mapping[Any, Any], now: float) -> int:
        """Make the host so, `now` in Unix seconds. The number of changes; 0 if all is so already."""
        ...

    def observe(self) -> Mapping[str, int]:
        """Counts to publish."""
        ...

    def remove(self) -> object:
        """Take away what it made."""
        ...

    def close(self) -> None:
        """Let go; what it made stays."""
        ...


class Tally:
    """Counts that several threads raise."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, name: str, number: int = 1) -> None:
        with self._lock:
            self._counts[name] += number

    def put(self, name: str, number: int) -> None:
        with self._lock:
            self._counts[name] = number

    def all(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)


class ActuatorKind:
    """One kind; the base has nothing on the host."""

    def actuators(self, config: Config) -> list[Actuator]:
        """Those that the policies of the configuration need."""
        return []

    def sweep(self, config: Config) -> None:
        """Take away what an earlier run or configuration left and no policy speaks of any more. Raises HostError."""

    def remove_all(self) -> list[str]:
        """Take away all that is of this kind, whoever made it; what was there. Raises HostError."""
        return []

    def carry_out(self, oneshot: Oneshot, payload: bytes, tally: Tally, closing: threading.Event) -> None:
        """Do it once, on a thread of oneshot.py; what fails is counted and logged, never raised."""
        raise HostError(f"policy {oneshot.decision.policy}: {type(self).__name__} does nothing once")
