"""Gives and takes resources: a thread for each [[resource]] of this host, so that none waits for another.

A provider compares what its back end observes with what is wanted and carries the difference out, one peer after the
other. A failure is tried again after 1, 2, 4 ... BACKOFF_MAX seconds; what is refused is told, and tried again only
when something else is wanted, or after REFUSED_AGAIN seconds. Every LOOK seconds it looks whether somebody else has
changed something. It keeps nothing on disk: after a kill the world tells what there is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from scentd.act.resources.backend import Backend, Refused
from scentd.core.allocate.entry import same
from scentd.errors import HostError
from scentd.model import Applied, Observed

log = logging.getLogger(__name__)

LOOK = 5.0
BACKOFF_MIN = 1.0
BACKOFF_MAX = 60.0
REFUSED_AGAIN = 600.0
CLOSE_TIMEOUT = 20.0
TEXT_MAX = 400  # characters of a failure


@dataclass(slots=True)
class Failure:
    """Why the last change for a peer did not work."""

    amount: float
    text: str
    tries: int = 1
    again_at: float = 0.0  # monotonic


@dataclass(slots=True)
class Task:
    """What is wanted for one peer, and what became of it."""

    amount: float
    applied: float | None = None  # what the last change gave; None: there was none
    failure: Failure | None = None
    unseen: bool = False  # the last change has worked by the back end's account; it was not observed yet


@dataclass(slots=True)
class Wanted:
    """What the allocator wants; filled by its thread."""

    lock: threading.Condition = field(default_factory=threading.Condition)
    new: dict[str, float] = field(default_factory=dict)
    closing: bool = False
    give_back: bool = False


class Provider:
    """One [[resource]]. `report` is called on the provider's thread."""

    def __init__(self, backend: Backend, report: Callable[[Observed | Applied], None]) -> None:
        self.resource = backend.resource
        self._backend = backend
        self._report = report
        self._wanted = Wanted()
        self._tasks: dict[str, Task] = {}
        self._observed: Mapping[str, float] = {}
        self._look_failures = 0
        self._why_not = ""  # it cannot look
        self._thread = threading.Thread(target=self._work, name=f"provide-{backend.resource.name}", daemon=True)

    def start(self, given: Mapping[str, float]) -> None:
        """Begin. `given`: by peer what an earlier run has given; what is there otherwise has been changed by others."""
        self._tasks = {peer: Task(amount, amount) for peer, amount in given.items()}
        self._thread.start()

    def want(self, amounts: Mapping[str, float]) -> None:
        """By peer the amounts that are wanted from now on. Does not wait."""
        with self._wanted.lock:
            self._wanted.new.update(amounts)
            self._wanted.lock.notify()

    def why_not(self, peer: str) -> str:
        """Why the peer does not have what is wanted; empty if it has it, or nothing was tried yet."""
        task = self._tasks.get(peer)
        return self._why_not or (task.failure.text if task is not None and task.failure is not None else "")

    def begin_close(self, give_back: bool) -> None:
        """Stop, without waiting; with `give_back` every peer first gets the usual amount."""
        with self._wanted.lock:
            self._wanted.closing, self._wanted.give_back = True, give_back
            self._wanted.lock.notify()
        if not give_back:
            self._backend.setting.closing.set()

    def join(self) -> None:
        """Wait CLOSE_TIMEOUT seconds at most."""
        self._thread.join(CLOSE_TIMEOUT)
        if self._thread.is_alive():
            self._backend.setting.closing.set()
            log.error("resource %s: a change still runs, and scentd stops without it", self.resource.name)

    def close(self, give_back: bool) -> None:
        self.begin_close(give_back)
        self.join()

    # -- the provider's thread ----------------------------------------------

    def _work(self) -> None:
        self._look()
        due = time.monotonic() + LOOK
        while self._next(due):
            self._look()
            due = self._carry_out()
        if self._wanted.give_back:
            self._give_back()
        self._backend.close()

    def _next(self, due: float) -> bool:
        """Wait until something is wanted or `due` (monotonic). False ends the thread."""
        wanted = self._wanted
        with wanted.lock:
            wanted.lock.wait_for(lambda: wanted.new or wanted.closing, max(0.0, due - time.monotonic()))
            new, wanted.new = wanted.new, {}
            for peer, amount in new.items():
                task = self._tasks.setdefault(peer, Task(amount))
                if not same(task.amount, amount):
                    task.amount, task.failure = amount, None
            return not wanted.closing

    def _look(self) -> bool:
        """Observe, and report; whether it worked."""
        try:
            self._observed = dict(self._backend.observe())
        except Exception as error:  # the other resources must go on
            self._look_failures += 1
            self._backend.setting.tally.add(f"{self.resource.name}_failures")
            if plain(error) != self._why_not:
                tell(self.resource.name, error, "next look soon")
            self._why_not = plain(error)
            return False
        if self._why_not:
            log.info("resource %s: works again", self.resource.name)
        self._look_failures, self._why_not = 0, ""
        self._report(Observed(self.resource.name, dict(self._observed), tuple(self._drifted())))
        return True

    def _drifted(self) -> list[str]:
        """The peers whose amount somebody else has changed. With drift = "report" that is what is wanted now."""
        drifted = []
        for peer, task in self._tasks.items():
            found = self._observed.get(peer, 0.0)
            if task.applied is not None and same(task.applied, task.amount) and not same(found, task.applied):
                drifted.append(peer)
                task.applied = None
                if self.resource.drift == "report":
                    task.amount = task.applied = found
        return drifted

    def _carry_out(self) -> float:
        """Change what differs. Returns when to look again (monotonic)."""
        if self._why_not:
            return time.monotonic() + min(BACKOFF_MIN * 2 ** (self._look_failures - 1), BACKOFF_MAX)
        changed: list[tuple[str, Task, float]] = []
        for peer, task in list(self._tasks.items()):
            if self._wanted.closing or (changed and self._wanted.new):  # what is new may be in a hurry
                break
            failed = task.failure
            if same(self._observed.get(peer, 0.0), task.amount):
                task.applied, task.failure = task.amount, None
            elif failed is None or failed.again_at <= time.monotonic():
                changed.append((peer, task, self._change(peer, task)))
        if changed and self._look():
            for peer, task, seconds in changed:
                self._judge(peer, task, seconds)
        again = [t.failure.again_at for t in self._tasks.values() if t.failure is not None]
        return min([time.monotonic() + LOOK, *again])

    def _change(self, peer: str, task: Task) -> float:
        """Seconds that the change took."""
        begun = time.monotonic()
        try:
            self._backend.change(peer, task.amount)
        except Exception as error:  # the other peers must go on
            self._fail(peer, task, error)
        else:
            task.applied, task.unseen = None, True
            self._backend.setting.tally.add(f"{self.resource.name}_changes")
        return time.monotonic() - begun

    def _judge(self, peer: str, task: Task, seconds: float) -> None:
        """After a change, report how it went by what is there now."""
        found, amount = self._observed.get(peer, 0.0), task.amount
        unseen, task.unseen = task.unseen, False
        if unseen and same(found, amount):
            task.applied, task.failure = amount, None
        elif unseen:
            there, wanted = self.resource.amount_text(found), self.resource.amount_text(amount)
            self._fail(peer, task, HostError(f"done by its own account, but {there} is there, not {wanted}"))
        self._report(Applied(self.resource.name, peer, amount, seconds, task.failure.text if task.failure else ""))

    def _fail(self, peer: str, task: Task, error: Exception) -> None:
        old = task.failure
        tries = old.tries + 1 if old is not None else 1
        pause = REFUSED_AGAIN if isinstance(error, Refused) else min(BACKOFF_MIN * 2 ** (tries - 1), BACKOFF_MAX)
        task.applied = None
        text = plain(error)
        task.failure = Failure(task.amount, text, tries, time.monotonic() + pause)
        self._backend.setting.tally.add(f"{self.resource.name}_failures")
        if old is None or old.text != text:
            then = "mend it, then scentd reload" if isinstance(error, Refused) else f"next try in {pause:g} s"
            tell(f"{self.resource.name} of {peer}", error, then)

    def _give_back(self) -> None:
        for peer in self._tasks:
            try:
                self._backend.change(peer, self.resource.usual)
            except Exception as error:  # the other peers get it back
                tell(f"{self.resource.name} of {peer}", error, "it keeps what it has")


def tell(name: str, error: Exception, then: str) -> None:
    """Log one line for a refusal of the world, the whole trace for a defect."""
    expected = isinstance(error, HostError | OSError)
    log.error("resource %s: %s; %s", name, plain(error), then, exc_info=None if expected else error)


def plain(error: Exception) -> str:
    """Its text, which may quote a server or a program: one line of printable characters, not longer than TEXT_MAX."""
    text = "".join(c if c.isprintable() else " " for c in str(error) or type(error).__name__)
    return text if len(text) <= TEXT_MAX else f"{text[:TEXT_MAX]}..."
