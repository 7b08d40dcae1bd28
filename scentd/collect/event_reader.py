"""What all sources of security events share: their settings, what they hold, the alarm, and a log as input."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol

from scentd.collect.held import HeldEvents
from scentd.collect.lines import Input
from scentd.collect.source import CollectError, Reader, Setting
from scentd.config.schema import check_positive
from scentd.config.sections import Share, Source
from scentd.config.units import Seconds
from scentd.model import Sample, SecurityEvent


class EventSource(Source):
    """Base of the sections of sources that report security events."""

    hold: Seconds = 60.0  # how long one event keeps the threat level up
    alarm: Share = 0.5  # an event at least this severe makes a new epoch at once

    reports_events = True

    def mistakes(self, path: str) -> list[str]:
        return check_positive(self, path, "hold")


class EventReader(Reader):
    """Holds a source's events, and calls the alarm on the loop's thread when a severe one begins."""

    polled = False

    def __init__(self, source: EventSource, setting: Setting) -> None:
        self.held = HeldEvents()
        self._alarm = source.alarm
        self._on_alarm = setting.on_alarm
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()

    def adopt(self, old: Reader) -> None:
        assert isinstance(old, EventReader)  # of the same source
        self.held.adopt(old.held)

    def hold(self, event: SecurityEvent) -> bool:
        """Hold an event that has just been reported. Whether it begins. For any thread."""
        begins = self.held.hold(event, time.monotonic())
        if begins and event.severity >= self._alarm and self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: this process ends
                self._loop.call_soon_threadsafe(self._on_alarm, event)
        return begins

    def events(self, now: float, monotonic: float) -> list[SecurityEvent]:
        return self.held.active(now, monotonic)

    def counts(self) -> Mapping[str, int]:
        return {f"{self.name}_summed": self.held.summed}


class Log(Protocol):
    """What a kind knows of its lines."""

    @property
    def counters(self) -> Mapping[str, int]: ...

    def event(self, line: bytes, now: float, monotonic: float) -> SecurityEvent | None:
        """The event that a line tells of; None if there is none. Never raises, for any line."""


class LogReader(EventReader):
    """Takes the lines of a log to events. `name` is the kind's; its counters begin with it."""

    polled = True  # read() tells why nothing comes

    def __init__(
        self,
        name: str,
        source: EventSource,
        setting: Setting,
        log: Log,
        make_input: Callable[[Callable[[bytes], None]], Input],
    ) -> None:
        super().__init__(source, setting)
        self.name = name
        self.log = log
        self.input = make_input(self.take)

    async def start(self) -> None:
        await super().start()
        await self.input.start()

    async def close(self) -> None:
        await self.input.close()

    def adopt(self, old: Reader) -> None:
        super().adopt(old)
        assert isinstance(old, LogReader)
        if type(old.input) is type(self.input):
            self.input.adopt(old.input)

    def take(self, line: bytes) -> None:
        event = self.log.event(line, time.time(), time.monotonic())
        if event is not None:
            self.hold(event)

    def read(self, now: float) -> list[Sample]:
        if self.input.problem:
            raise CollectError(self.input.problem)
        return []

    def counts(self) -> Mapping[str, int]:
        own = {f"{self.name}_{of}": count for of, count in {**self.log.counters, **self.input.counters}.items()}
        return {**super().counts(), **own}
