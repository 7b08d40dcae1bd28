"""Takes a changed configuration over into a running daemon, or refuses it whole, with the reasons.

A reload may be on trial: it goes back by itself to the configuration that ran before, unless somebody confirms it in
time. So nobody locks himself out for good.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass

from msgspec import Struct
from msgspec.structs import replace

from scentd.config.sections import Config
from scentd.core.pairs import Identities
from scentd.errors import ConfigError
from scentd.kinds import load_config
from scentd.model import SCHEMA
from scentd.state import identities
from scentd.system import notify
from scentd.wire import keys

log = logging.getLogger("scentd")

RETRY = 10.0  # seconds until a trial that could not go back tries it again
RESTART = "changed; this needs a restart: systemctl restart scentd, which loses no packet"
# What a running daemon cannot take over: the processes, sockets, queues and pins that it was started with.
RESTART_ONLY: tuple[tuple[str, Callable[[Config], object]], ...] = (
    ("datapath", lambda c: c.datapath),
    ("daemon.state_dir", lambda c: c.daemon.state_dir),
    ("daemon.control_socket", lambda c: c.daemon.control_socket),
    ("guard.socket", lambda c: c.guard.socket),
    ("bus", lambda c: replace(c.bus, host=[])),  # another host is no reason to restart
)


@dataclass(frozen=True, slots=True)
class Setup:
    """A configuration and the keys that it named when it was read: going back needs no file."""

    config: Config
    identities: Mapping[str, Identities]
    bus_identity: keys.Identity | None = None  # this host's own on the bus between hosts; None: it is not on it


@dataclass(frozen=True, slots=True)
class Trial:
    """What an unconfirmed configuration gives way to, and when."""

    before: Setup
    until: float  # Unix time
    timer: asyncio.TimerHandle


class ReloadOutcome(Struct, frozen=True, kw_only=True):
    """The answer to `reload` and `confirm`."""

    schema: int = SCHEMA
    applied: bool
    problems: list[str] = []  # of a refused one its mistakes; of an applied one what did not work
    trial_until: float | None = None  # Unix time at which an unconfirmed configuration goes


def read(path: str) -> Setup:
    """Raises ConfigError with every mistake, also of keys."""
    config = load_config(path)
    return Setup(config, identities.load(config), identities.load_bus(config))


class Reloads:
    """Reloads one after the other.

    `switch` takes a setup over and returns what did not work. It raises ConfigError before anything has changed.
    `spawn` runs a coroutine and logs its failure.
    """

    def __init__(
        self,
        path: str,
        running: Setup,
        switch: Callable[[Setup], Awaitable[list[str]]],
        spawn: Callable[[Coroutine[None, None, None]], None],
    ) -> None:
        self.counts = Counter(applied=0, refused=0, reverted=0)
        self.lock = asyncio.Lock()  # held while a configuration is taken over
        self.reverted_at: float | None = None  # Unix time; until something else is applied
        self._path = path
        self._running = running
        self._switch = switch
        self._spawn = spawn
        self._trial: Trial | None = None

    @property
    def trial_until(self) -> float | None:
        """Unix time at which the configuration goes back, if it is on trial."""
        return self._trial.until if self._trial is not None else None

    async def reload(self, confirm: float = 0.0) -> ReloadOutcome:
        """Apply the file. With `confirm` it is on trial for so many seconds.

        During a trial another reload is on trial, too, and what it goes back to stays the same.
        """
        async with self.lock:
            notify.reloading()
            try:
                new = read(self._path)
                refuse_restart_only(self._running.config, new.config)
                problems = await self._take_over(new, confirm)
            except ConfigError as error:
                return self._refuse(error)
            finally:
                notify.notify("READY=1")
            log.info("configuration reloaded")
            self.counts["applied"] += 1
            self.reverted_at = None
            notify.notify(f"STATUS=configuration reloaded{', on trial' if self._trial is not None else ''}")
            return ReloadOutcome(applied=True, problems=problems, trial_until=self.trial_until)

    async def again(self) -> ReloadOutcome:
        """Apply what runs once more: something beside the configuration has changed."""
        async with self.lock:
            problems = await self._switch(self._running)
            for problem in problems:
                log.error("applied but for: %s", problem)
            return ReloadOutcome(applied=True, problems=problems, trial_until=self.trial_until)

    async def _take_over(self, new: Setup, confirm: float) -> list[str]:
        """Switch, and return what did not work. A trial begins even if the switch fails in the middle."""
        changed = True
        try:
            problems = await self._switch(new)
        except ConfigError:
            changed = False
            raise
        finally:
            if changed:
                before, self._running = self._running, new
                self._begin_trial(before, confirm)
        for problem in problems:
            log.error("reload: applied but for: %s", problem)
        return problems

    def _refuse(self, error: ConfigError) -> ReloadOutcome:
        self.counts["refused"] += 1
        log.error("reload refused, the old configuration stays:\n%s", error)
        notify.notify("STATUS=reload refused, the old configuration stays")
        return ReloadOutcome(applied=False, problems=error.problems, trial_until=self.trial_until)

    # -- on trial ----------------------------------------------------------

    async def confirm(self) -> ReloadOutcome:
        """Keep what is on trial."""
        async with self.lock:
            if self._trial is None:
                why = "nothing is on trial: it was confirmed, or has gone back"
                return ReloadOutcome(applied=False, problems=[why])
            self._end_trial()
            log.info("the configuration is confirmed")
            notify.notify("STATUS=configuration confirmed")
            return ReloadOutcome(applied=True)

    def stop(self) -> None:
        """The daemon ends. The next one reads the file, whatever was on trial."""
        if self._trial is not None:
            log.warning("the configuration on trial was not confirmed; the next daemon takes %s as it is", self._path)
        self._end_trial()

    def _begin_trial(self, before: Setup, seconds: float) -> None:
        """Go back to `before` in so many seconds; a trial that is on keeps its own. 0: no trial, and no longer one."""
        if self._trial is not None:
            before = self._trial.before
        if not seconds:
            return
        self._end_trial()
        timer = asyncio.get_running_loop().call_later(seconds, self._on_trial_end)
        self._trial = Trial(before, time.time() + seconds, timer)
        log.info("the configuration goes back in %.0f s, unless `scentd confirm` follows", seconds)

    def _end_trial(self) -> None:
        if self._trial is not None:
            self._trial.timer.cancel()
            self._trial = None

    def _on_trial_end(self) -> None:
        if self._trial is not None:
            self._spawn(self._revert(self._trial))

    async def _revert(self, trial: Trial) -> None:
        async with self.lock:
            if self._trial is not trial:  # confirmed at the last moment, or another reload began a longer trial
                return
            log.warning("nobody confirmed: going back to the configuration before; %s stays as it is", self._path)
            try:
                problems = await self._switch(trial.before)
            except ConfigError as error:
                log.error("going back failed, next try in %.0f s: %s", RETRY, error)
                self._begin_trial(trial.before, RETRY)
                return
            for problem in problems:
                log.error("going back: applied but for: %s", problem)
            self._end_trial()
            self._running = trial.before
            self.counts["reverted"] += 1
            self.reverted_at = time.time()
            notify.notify("STATUS=nobody confirmed: the configuration before the reload is back")


def refuse_restart_only(old: Config, new: Config) -> None:
    """Raise ConfigError for changes that a running daemon cannot take over."""
    problems = []
    for name, part in RESTART_ONLY:
        before, after = part(old), part(new)
        if before != after:
            fields = getattr(before, "__struct_fields__", ())
            changed = [f"{name}.{f}" for f in fields if getattr(before, f) != getattr(after, f)]
            problems += [f"{path}: {RESTART}" for path in changed or [name]]
    if problems:
        raise ConfigError(problems)
