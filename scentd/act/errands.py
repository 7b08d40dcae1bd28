"""Commands and webhooks, each run once, by a few threads of their own: a slow one holds up nothing else."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter

import msgspec

from scentd.act import command, webhook
from scentd.errors import HostError
from scentd.plan import Errand, Post, Run

log = logging.getLogger(__name__)

THREADS = 4
WAITING_MAX = 64
WEBHOOK_TRIES = 3
WEBHOOK_PAUSE = 1.0  # doubles


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


class Errands:
    """A bounded queue and the threads that empty it, started with the first errand.

    Counts: command_runs, command_failures (status other than 0, or not run to its end), webhook_posts,
    webhook_failures (each try), webhook_given_up, errands_lost (the queue was full, or closed).
    """

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._queue: queue.Queue[Errand | None] = queue.Queue(WAITING_MAX)  # None: the end
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()

    def add(self, errand: Errand) -> None:
        """Does not wait. A full queue loses the errand, counted and logged."""
        if self._closing.is_set():
            self._lose(errand, "scentd stops")
            return
        try:
            self._queue.put_nowait(errand)
        except queue.Full:
            self._lose(errand, f"{WAITING_MAX} commands and webhooks are waiting already")
            return
        if not self._threads:
            for _ in range(THREADS):
                thread = threading.Thread(target=self._work, name="scentd-errand", daemon=True)
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
        while (errand := self._queue.get()) is not None:
            try:
                self._carry_out(errand)
            except Exception:  # a mistake of ours in one errand must not end the others
                log.exception("policy %s: errand failed", errand.decision.policy)
                self._tally.add("errands_lost")

    def _carry_out(self, errand: Errand) -> None:
        payload = msgspec.json.encode(errand.decision)
        if isinstance(errand, Run):
            self._run(errand, payload)
        else:
            self._post(errand, payload)

    def _run(self, errand: Run, payload: bytes) -> None:
        """Once: whether a program may be run again is not ours to know."""
        self._tally.add("command_runs")
        try:
            status = command.run(errand.argv, payload, errand.timeout, errand.user)
        except HostError as error:
            self._tally.add("command_failures")
            log.error("policy %s: %s", errand.decision.policy, error)
            return
        if status != 0:
            self._tally.add("command_failures")
            log.error("policy %s: command %s: status %d", errand.decision.policy, errand.argv[0], status)

    def _post(self, errand: Post, payload: bytes) -> None:
        """Up to WEBHOOK_TRIES times: a receiver may get a decision twice, told by its time and policy."""
        self._tally.add("webhook_posts")
        for i in range(WEBHOOK_TRIES):
            try:
                webhook.post(errand.url, payload, errand.timeout)
                return
            except HostError as error:
                self._tally.add("webhook_failures")
                log.error("policy %s: %s", errand.decision.policy, error)
            if i + 1 == WEBHOOK_TRIES or self._closing.wait(WEBHOOK_PAUSE * 2**i):
                break
        self._tally.add("webhook_given_up")

    def _lose(self, errand: Errand, why: str) -> None:
        self._tally.add("errands_lost")
        log.error("policy %s: not run: %s", errand.decision.policy, why)
