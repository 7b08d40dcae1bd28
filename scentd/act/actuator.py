"""Actuators carry out actions on this host: each kind of action has a subclass of ActuatorKind in a file of its own.

A level-triggered kind has lasting actuators. Each takes the whole desired state of its kind, and may get the
same one again (reconcile.py calls them). An edge kind carries a Oneshot out (oneshot.py).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from scentd.config.sections import Config
from scentd.errors import HostError
from scentd.model import Oneshot


class Actuator(Protocol):
    """Keeps one part of the host as desired. Belongs to one thread; every method may raise HostError."""

    name: str  # in log lines and counters: quarantine, bandwidth_eth0
    resource: str  # the only one of its kind that it keeps; "": all of them

    def apply(self, resources: Mapping[Any, Any], now: float) -> int:
        """Make the host have these resources; return the number of changes. `now` in Unix seconds."""
        ...

    def observe(self) -> Mapping[str, int]:
        """Return counts to publish."""
        ...

    def remove(self) -> object:
        """Remove from the host what this actuator has made."""
        ...

    def close(self) -> None:
        """Close descriptors; the state of the host stays."""
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


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a oneshot."""

    oneshot: Oneshot
    payload: bytes  # the decision as JSON
    tries: int  # those before this one
    age: float  # seconds since the first one began


class ActuatorKind:
    """One kind of actuator; the base class changes nothing on the host."""

    def actuators(self, config: Config) -> list[Actuator]:
        """The actuators that the configuration's policies need."""
        return []

    def notes(self, config: Config) -> list[str]:
        """What the configuration asks of this host in vain, as far as can be told before it runs."""
        return []

    def sweep(self, config: Config) -> None:
        """Remove what an earlier run or configuration has left and no policy uses any more. Raises HostError."""

    def remove_all(self) -> list[str]:
        """Remove everything of this kind, whichever run made it; return its names. Raises HostError."""
        return []

    def carry_out(self, attempt: Attempt, tally: Tally) -> float | None:
        """Carry out the oneshot, on a thread of oneshot.py. A failure is counted and logged, never raised.

        Return the seconds after which to try again; None: it is done, or given up.
        """
        raise HostError(f"policy {attempt.oneshot.decision.policy}: {type(self).__name__} carries out no oneshots")
