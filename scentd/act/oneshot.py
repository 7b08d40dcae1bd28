"""Carries out edge actions (commands, webhooks ...), each once, on a few threads of their own: a slow action delays
no other part."""

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
    """A bounded queue and the threads that empty it, which the first oneshot starts.

    Counts, besides the counts of the kinds: oneshots_lost (the queue was full, or closed).
    """

    def __init__(self, tally: Tally, on_done: Callable[[Oneshot], None]) -> None:
        """One of these threads calls `on_done` after each oneshot, also after a failed one."""
        self._tally = tally
        self._on_done = on_done
        self._queue: queue.Queue[Oneshot | None] = queue.Queue(WAITING_MAX)  # None: the end
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()

    def add(self, oneshot: Oneshot) -> None:
        """Queue a oneshot, without waiting. If the queue is full, the oneshot is lost, counted and logged."""
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
        """Wait up to `timeout` seconds for running oneshots to end; waiting ones are lost, counted and logged."""
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
                self._on_done(oneshot)
            except Exception:  # a defect in one must not end the others
                log.exception("policy %s: not carried out", oneshot.decision.policy)
                self._tally.add("oneshots_lost")

    def _lose(self, oneshot: Oneshot, why: str) -> None:
        self._tally.add("oneshots_lost")
        log.error("policy %s: not run: %s", oneshot.decision.policy, why)
