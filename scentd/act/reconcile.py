"""Keeps the host in the desired state, on a thread of its own.

submit() never waits: the newest desired state replaces one that is not carried out yet. If an actuator fails, the
failure is logged and counted, and that actuator retries after 1, 2, 4 ... BACKOFF_MAX seconds; the packet path and the
allocator go on. Every RECONCILE seconds the actuators compare the host with the desired state, and restore what
somebody else has removed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from scentd.act import ACTUATORS
from scentd.act.actuator import Actuator, Tally
from scentd.config.sections import Config
from scentd.errors import HostError
from scentd.model import Desired

log = logging.getLogger(__name__)

BACKOFF_MIN = 1.0
BACKOFF_MAX = 30.0
AGAIN = 600.0  # seconds after which the same failure is logged once more
RECONCILE = 5.0
CLOSE_TIMEOUT = 5.0


@dataclass(slots=True)
class Keeper:
    """One actuator, the desired state that it applied last, and its failures."""

    kind: str
    actuator: Actuator
    applied: Desired | None = None
    due: float = 0.0  # monotonic; the next run
    failures: int = 0  # in a row
    why_not: str = ""  # the last failure, until it works again
    told: float = 0.0  # CLOCK_MONOTONIC, when it was logged

    def is_due(self, desired: Desired) -> bool:
        """Whether to run now. A new state is due at once, unless the last try failed."""
        return self.due <= time.monotonic() or (not self.failures and desired != self.applied)

    def run(self, desired: Desired, tally: Tally) -> None:
        name = self.actuator.name
        try:
            tally.add(f"{name}_changes", self.actuator.apply(desired.of(self.kind), time.time()))
            for counter, number in self.actuator.observe().items():
                tally.put(f"{name}_{counter}", number)
        except Exception as error:  # the other actuators must go on
            pause = min(BACKOFF_MIN * 2**self.failures, BACKOFF_MAX)
            self.failures, self.due = min(self.failures + 1, 10), time.monotonic() + pause
            tally.add(f"{name}_failures")
            if str(error) != self.why_not or time.monotonic() > self.told + AGAIN:
                report(name, error, f"next try in {pause:g} s")
                self.told = time.monotonic()
            self.why_not = str(error)
            return
        if self.failures:
            log.info("%s: works again", name)
        self.applied, self.failures, self.due = desired, 0, time.monotonic() + RECONCILE
        self.why_not = ""


class Reconciler:
    """Runs the actuators that the configuration's policies need. Another configuration needs a new Reconciler.

    Its thread works in the network namespace of the thread that makes it. First it removes what policies of an
    earlier run or configuration have left on the host. It calls `on_applied(desired)` whenever every actuator has
    applied a desired state.
    """

    def __init__(self, config: Config, tally: Tally, on_applied: Callable[[Desired], None]) -> None:
        self._config = config
        self._tally = tally
        self._on_applied = on_applied
        self._changed = threading.Condition()
        self._desired: Desired | None = None
        self._has_new = False
        self._closing = False
        self._remove = False
        self._keepers: list[Keeper] = []
        self._thread = threading.Thread(target=self._work, name="scentd-act", daemon=True)
        self._thread.start()

    def submit(self, desired: Desired) -> None:
        """Take over the desired state. Does not wait."""
        with self._changed:
            self._desired, self._has_new = desired, True
            self._changed.notify()

    def why_not(self, kind: str, resource: str) -> str:
        """Why the host does not have what is desired of a resource; empty if it has, or it was not tried yet."""
        failed = [k for k in self._keepers if k.kind == kind and k.actuator.resource in ("", resource) and k.why_not]
        return failed[0].why_not if failed else ""

    def close(self, remove: bool) -> None:
        """Stop; with `remove` the actuators remove their changes from the host. Waits CLOSE_TIMEOUT seconds at most."""
        with self._changed:
            self._closing, self._remove = True, remove
            self._changed.notify()
        self._thread.join(CLOSE_TIMEOUT)
        if self._thread.is_alive():
            log.error("an actuator hangs; scentd cleanup removes what it made")

    def _work(self) -> None:
        for kind, actuators in ACTUATORS.items():
            attempt(f"{kind}: sweep", lambda actuators=actuators: actuators.sweep(self._config))  # type: ignore[misc]
        keepers = [Keeper(kind, a) for kind, k in ACTUATORS.items() for a in k.actuators(self._config)]
        self._keepers = keepers
        reported: Desired | None = None
        while (desired := self._next(keepers)) is not None:
            for keeper in keepers:
                if keeper.is_due(desired):
                    keeper.run(desired, self._tally)
            if desired is not reported and all(keeper.applied == desired for keeper in keepers):
                reported = desired
                self._on_applied(desired)
        for keeper in keepers:
            if self._remove:
                attempt(keeper.actuator.name, keeper.actuator.remove)
            keeper.actuator.close()

    def _next(self, keepers: list[Keeper]) -> Desired | None:
        """Wait for a new desired state, or until a keeper is due, and return the state. None ends the thread."""
        with self._changed:
            pause = None
            if self._desired is not None and keepers:
                pause = max(0.0, min(k.due for k in keepers) - time.monotonic())
            self._changed.wait_for(lambda: self._has_new or self._closing, pause)
            self._has_new = False
            return None if self._closing else self._desired


def attempt(name: str, job: Callable[[], object]) -> None:
    """Do the job once; a failure is logged."""
    try:
        job()
    except Exception as error:  # the thread goes on
        report(name, error, "scentd cleanup removes what is left")


def report(name: str, error: Exception, then: str) -> None:
    """Log one line for a refusal of the host, the whole trace for a defect."""
    is_refusal = isinstance(error, HostError | OSError)
    log.error("%s: %s; %s", name, error, then, exc_info=None if is_refusal else error)
