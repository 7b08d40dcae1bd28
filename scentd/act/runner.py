"""Carries out the desired state and errands, in threads of its own.

submit() never waits: the newest desired state replaces one that is not carried out yet. A failure
is logged, counted and retried after 1, 2, 4 ... BACKOFF_MAX seconds, for each actuator by itself; the packet
path and the allocator go on. Every RECONCILE seconds the host is compared with the desired state, so that
what others took away comes back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from scentd import config, plan
from scentd.act import bandwidth
from scentd.act.bandwidth import Bandwidth
from scentd.act.errands import Errands, Tally
from scentd.act.quarantine import Quarantine
from scentd.act.quarantine import remove_all as remove_quarantine
from scentd.errors import HostError
from scentd.plan import Desired, Errand

log = logging.getLogger(__name__)

BACKOFF_MIN = 1.0
BACKOFF_MAX = 30.0
RECONCILE = 5.0
CLOSE_TIMEOUT = 5.0


@dataclass(slots=True)
class Keeper:
    """One actuator, its part of the desired state, and its failures."""

    name: str
    apply: Callable[[Desired, float], int]  # (desired, Unix seconds) -> number of changes
    remove: Callable[[], object]
    observe: Callable[[], Mapping[str, int]] = dict  # counts to publish
    applied: Desired | None = None
    due: float = 0.0  # monotonic; not before
    failures: int = 0  # in a row

    def wanted(self, desired: Desired) -> bool:
        """A new state is due at once, unless the last try failed."""
        return self.due <= time.monotonic() or (not self.failures and desired != self.applied)

    def run(self, desired: Desired, tally: Tally) -> None:
        try:
            tally.add(f"{self.name}_changes", self.apply(desired, time.time()))
            for name, number in self.observe().items():
                tally.put(f"{self.name}_{name}", number)
        except Exception as error:  # whatever it is, the other actuators go on
            pause = min(BACKOFF_MIN * 2**self.failures, BACKOFF_MAX)
            self.failures, self.due = min(self.failures + 1, 10), time.monotonic() + pause
            tally.add(f"{self.name}_failures")
            report(self.name, error, f"next try in {pause:g} s")
            return
        if self.failures:
            log.info("%s: works again", self.name)
        self.applied, self.failures, self.due = desired, 0, time.monotonic() + RECONCILE


class Runner:
    """The actuators that the configuration's policies need. For another configuration close it and make a new one.

    Its threads work in the network namespace of the thread that makes it. What policies of an
    earlier run or configuration left on the host is taken away first.
    """

    def __init__(self, settings: config.Config) -> None:
        self._settings = settings
        self._changed = threading.Condition()
        self._desired: Desired | None = None
        self._fresh = False
        self._closing = False
        self._remove = False
        self._tally = Tally()
        self._errands = Errands(self._tally)
        self._thread = threading.Thread(target=self._work, name="scentd-act", daemon=True)
        self._thread.start()

    def submit(self, desired: Desired, errands: Iterable[Errand] = ()) -> None:
        """Take over the desired state and run the errands once. Does not wait."""
        with self._changed:
            self._desired, self._fresh = desired, True
            self._changed.notify()
        for errand in errands:
            self._errands.add(errand)

    def counters(self) -> dict[str, int]:
        """What was done, what failed, what was lost: quarantine_changes, bandwidth_eth0_failures, command_runs ...;
        quarantine_dropped_ipv4 and _ipv6 are packets, as of the last comparison."""
        return self._tally.all()

    def close(self, remove: bool) -> None:
        """Stop; with `remove`, take away from the host what is ours. Waits 2 x CLOSE_TIMEOUT seconds at most."""
        with self._changed:
            self._closing, self._remove = True, remove
            self._changed.notify()
        self._errands.close(CLOSE_TIMEOUT)
        self._thread.join(CLOSE_TIMEOUT)
        if self._thread.is_alive():
            log.error("an actuator hangs; scentd cleanup takes away what it made")

    def _work(self) -> None:
        attempt("sweep", lambda: sweep(self._settings))
        quarantine = Quarantine()
        keepers = keepers_for(self._settings, quarantine)
        while (desired := self._next(keepers)) is not None:
            for keeper in keepers:
                if keeper.wanted(desired):
                    keeper.run(desired, self._tally)
        for keeper in keepers:
            if self._remove:
                attempt(keeper.name, keeper.remove)
        quarantine.close()

    def _next(self, keepers: list[Keeper]) -> Desired | None:
        """Wait for a new desired state, or until a keeper is due. None to end."""
        with self._changed:
            pause = None
            if self._desired is not None and keepers:
                pause = max(0.0, min(k.due for k in keepers) - time.monotonic())
            self._changed.wait_for(lambda: self._fresh or self._closing, pause)
            self._fresh = False
            return None if self._closing else self._desired


def keepers_for(settings: config.Config, quarantine: Quarantine) -> list[Keeper]:
    made = []
    if any(isinstance(p.do, config.Quarantine) for p in settings.policy):
        made.append(
            Keeper(
                "quarantine",
                lambda desired, now: quarantine.apply(plan.seconds_left(desired, now)),
                quarantine.remove,
                quarantine.counters,
            )
        )
    prefixes = {peer.name: config.prefixes(peer.addresses) for peer in settings.peer}
    for interface in interfaces(settings):
        made.append(shaper(Bandwidth(interface, prefixes)))
    return made


def shaper(actuator: Bandwidth) -> Keeper:
    def apply(desired: Desired, _: float) -> int:
        rates = desired.rates.items()
        return actuator.apply({network: rate for (network, on), rate in rates if on == actuator.interface})

    return Keeper(f"bandwidth_{actuator.interface}", apply, actuator.remove)


def interfaces(settings: config.Config) -> list[str]:
    return sorted({p.do.interface for p in settings.policy if isinstance(p.do, config.Bandwidth)})


def sweep(settings: config.Config) -> None:
    """Take away what no policy speaks of any more."""
    bandwidth.remove_all(besides=interfaces(settings))
    if not any(isinstance(p.do, config.Quarantine) for p in settings.policy):
        remove_quarantine()


def attempt(name: str, job: Callable[[], object]) -> None:
    """Do it once; a failure is logged."""
    try:
        job()
    except Exception as error:  # the thread goes on
        report(name, error, "scentd cleanup takes away what is left")


def report(name: str, error: Exception, then: str) -> None:
    """One line for what the host refused; the whole trace for a mistake of ours."""
    known = isinstance(error, HostError | OSError)
    log.error("%s: %s; %s", name, error, then, exc_info=None if known else error)
