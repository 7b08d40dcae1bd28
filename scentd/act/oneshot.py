"""Carries out edge actions (commands, webhooks ...) on a few threads of their own: a slow action delays no other part.

Each is carried out once, and again only if its kind asks for another try. What waits for another try holds no thread.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from scentd.act import ACTUATORS
from scentd.act.actuator import Attempt, Tally
from scentd.config.schema import kind_of
from scentd.model import Oneshot

log = logging.getLogger(__name__)

THREADS = 4
RETRY_THREADS = 2  # of those: servers that hang leave the others to what is new
WAITING_MAX = 64
RETRIES_MAX = 256


@dataclass(order=True, slots=True)
class WaitingOneshot:
    """A oneshot that waits, in order of the time when it is due."""

    due: float  # CLOCK_MONOTONIC
    number: int
    oneshot: Oneshot = field(compare=False)
    tries: int = field(default=0, compare=False)
    began: float = field(default=0.0, compare=False)  # CLOCK_MONOTONIC, of the first try


class Oneshots:
    """What waits, bounded, and the threads that carry it out, which the first oneshot starts.

    Counts, besides the counts of the kinds: oneshots_lost (too many waited, or scentd stopped).
    """

    def __init__(self, tally: Tally, on_done: Callable[[Oneshot], None]) -> None:
        """One of these threads calls `on_done` after the last try of each oneshot, also of a failed one."""
        self._tally = tally
        self._on_done = on_done
        self._changed = threading.Condition()  # guards all below
        self._new: deque[WaitingOneshot] = deque()
        self._retries: list[WaitingOneshot] = []  # a heap
        self._running_retries = 0
        self._closing = False
        self._threads: list[threading.Thread] = []
        self._numbers = itertools.count()

    def add(self, oneshot: Oneshot) -> None:
        """Let the oneshot be carried out, without waiting. If too many wait, it is lost, counted and logged."""
        with self._changed:
            if self._closing:
                self._lose(oneshot, "scentd stops")
            elif len(self._new) >= WAITING_MAX:
                self._lose(oneshot, f"{WAITING_MAX} actions are waiting already")
            else:
                self._new.append(WaitingOneshot(0.0, next(self._numbers), oneshot))
                self._changed.notify()
                self._start()

    def close(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for running oneshots to end; waiting ones are lost, counted and logged."""
        with self._changed:
            self._closing = True
            for entry in [*self._new, *self._retries]:
                self._lose(entry.oneshot, "scentd stops")
            self._new.clear()
            self._retries.clear()
            self._changed.notify_all()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _start(self) -> None:
        while len(self._threads) < THREADS:
            thread = threading.Thread(target=self._work, name="scentd-oneshot", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        while (entry := self._next()) is not None:
            pause = self._try(entry)
            with self._changed:
                self._running_retries -= entry.tries > 0
                if pause is not None:
                    self._try_later(entry, pause)
                self._changed.notify()

    def _next(self) -> WaitingOneshot | None:
        """Wait for the next entry that is due: what is new first. None ends the thread."""
        with self._changed:
            while not self._closing:
                now = time.monotonic()
                if self._new:
                    entry = self._new.popleft()
                    entry.began = now
                    return entry
                free = self._running_retries < RETRY_THREADS
                if self._retries and free and self._retries[0].due <= now:
                    self._running_retries += 1
                    return heapq.heappop(self._retries)
                self._changed.wait(self._retries[0].due - now if self._retries and free else None)
            return None

    def _try(self, entry: WaitingOneshot) -> float | None:
        """Carry it out. Return the seconds after which to try again; None: it has ended."""
        oneshot = entry.oneshot
        try:
            payload = msgspec.json.encode(oneshot.decision)
            attempt = Attempt(oneshot, payload, entry.tries, time.monotonic() - entry.began)
            pause = ACTUATORS[kind_of(oneshot.action)].carry_out(attempt, self._tally)
            if pause is None:
                self._on_done(oneshot)
            return pause
        except Exception:  # a defect in one must not end the others
            log.exception("policy %s: not carried out", oneshot.decision.policy)
            self._tally.add("oneshots_lost")
            return None

    def _try_later(self, entry: WaitingOneshot, pause: float) -> None:
        if self._closing:
            self._lose(entry.oneshot, "scentd stops")
        elif len(self._retries) >= RETRIES_MAX:
            self._lose(entry.oneshot, f"{RETRIES_MAX} actions wait for another try already")
        else:
            due = time.monotonic() + pause
            retry = WaitingOneshot(due, next(self._numbers), entry.oneshot, entry.tries + 1, entry.began)
            heapq.heappush(self._retries, retry)

    def _lose(self, oneshot: Oneshot, why: str) -> None:
        self._tally.add("oneshots_lost")
        log.error("policy %s: not run: %s", oneshot.decision.policy, why)
