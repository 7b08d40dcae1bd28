"""Edge actions (commands, webhooks ...), each carried out once, by a few threads of their own: a slow one holds up
nothing else."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

import msgspec

from scentd.act import ACTUATORS
from scentd.act.actuator import Tally
from scentd.config.schema import kind_of
from scentd.model import Oneshot

log = logging.getLogger(__name__)

THREADS = 4
WAITING_MAX = 64


class Oneshots:
    """A bounded queue and the threads that empty it, started with the first one.

    Counts, besides those of the kinds: oneshots_lost (the queue was full, or closed).
    """

    def __init__(self, tally: Tally, done: Callable[[Oneshot], None]) -> None:
        """`done` is called on a thread of these when one has been carried out, however it ended."""
        self._tally = tally
        self._done = done
        self._queue: queue.Queue[Oneshot | None] = queue.Queue(WAITING_MAX)  # None: the end
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()

    def add(self, oneshot: Oneshot) -> None:
        """Does not wait. A full queue loses it, counted and logged."""
        if self._closing.is_set():
            self._lose(oneshot, "scentd stops")
            return
        try:
            self._queue.put_nowait(oneshot)
        except queue.Full:
            self._lose(oneshot, f"{WAITING_MAX} actions are waiting already")
            return
        if not self._threads:
            for _ in range(THREADS):
                thread = threading.Thread(target=self._work, name="scentd-oneshot", daemon=True)
                self._threads.append(thread)
                thread.start()

    def close(self, timeout: float) -> None:
        """Let what runs come to its end, for `timeout` seconds at most; what waits is lost, counted and logged."""
        self._closing.set()
        while True:
            try:
                waiting = self._queue.get_nowait()
            except queue.Empty:
                break
            if waiting is not None:
                self._lose(waiting, "scentd stops")
        for _ in self._threads:
            self._queue.put_nowait(None)
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (oneshot := self._queue.get()) is not None:
            try:
                payload = msgspec.json.encode(oneshot.decision)
                ACTUATORS[kind_of(oneshot.action)].carry_out(oneshot, payload, self._tally, self._closing)
                self._done(oneshot)
            except Exception:  # a mistake of ours in one must not end the others
                log.exception("policy %s: not carried out", oneshot.decision.policy)
                self._tally.add("oneshots_lost")

    def _lose(self, oneshot: Oneshot, why: str) -> None:
        self._tally.add("oneshots_lost")
        log.error("policy %s: not run: %s", oneshot.decision.policy, why)
