"""Keeps the lease that lets this profiler issue, or this allocator decide, in a key-value bucket of NATS."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from scentd.bus.nats import NatsBus, NatsError
from scentd.core.fleet.lease import RENEW, Lease, LeaseRecord
from scentd.system.clock import steady
from scentd.system.loop_task import LoopTask

log = logging.getLogger(__name__)

LOOK = 0.25  # intervals from one look of a standby to the next
_encode = msgspec.json.Encoder().encode  # people read it with `nats kv get`
_decode = msgspec.json.Decoder(LeaseRecord).decode


class Holder(NamedTuple):
    """Who holds a lease."""

    role: str  # "profiler"
    idles: str  # "issues nothing": what it does without the lease
    key: str  # of the lease
    streams: tuple[str, ...]  # that it has to make for what it says


class LeaseKeeper:
    """`begun` is called when this host becomes the active one."""

    def __init__(self, lease: Lease, holder: Holder, nats: NatsBus, begun: Callable[[], None]) -> None:
        self._lease = lease
        self._holder = holder
        self._key = holder.key
        self._nats = nats
        self._begun = begun
        self._bucket: KeyValue | None = None
        self._task = LoopTask(self._run)
        self._told = ""
        self.active = False  # at the last look

    def begin(self) -> None:
        """Begin to look, unless it does so already."""
        self._task.begin()

    def renew_connection(self) -> None:
        """The next look asks for the bucket anew."""
        self._bucket = None

    async def stop(self) -> None:
        """Stop, and give the lease back, so that a standby need not wait."""
        await self._task.end()
        lease = self._lease
        if lease.may_act(steady()) and self._bucket is not None and self._nats.connected:
            try:
                await self._bucket.update(
                    self._key, _encode(LeaseRecord("", lease.term, lease.interval)), last=lease.revision
                )
            except (NatsError, OSError, TimeoutError) as error:
                log.warning("bus: the %s's lease was not given back: %s; it runs out", self._holder.role, error)

    async def _run(self) -> None:
        while True:
            if self._nats.connected:
                try:
                    await self._look()
                    self._told = ""
                except Exception as error:  # what stands in the bucket must not end the keeper
                    self._tell(str(error) or type(error).__name__)
                    self._bucket = None
            self._note()
            await asyncio.sleep(self._lease.interval * (RENEW if self.active else LOOK))

    async def _look(self) -> None:
        if self._bucket is None:
            await self._nats.make_streams(self._holder.streams)
            self._bucket = await self._nats.bucket()
        lease = self._lease
        if not lease.may_act(steady()):
            await self._read(self._bucket)
        record = lease.wanted(steady(), time.time())
        if record is None:
            return
        sent, data = steady(), _encode(record)
        try:
            if lease.revision:
                revision = await self._bucket.update(self._key, data, last=lease.revision)
            else:
                revision = await self._bucket.create(self._key, data)
        except KeyWrongLastSequenceError:  # somebody else was faster, or it is made anew
            await self._read(self._bucket)
        else:
            lease.wrote(record, revision, sent, steady())

    async def _read(self, bucket: KeyValue) -> None:
        try:
            entry = await bucket.get(self._key)
        except KeyNotFoundError:
            self._lease.see(None, 0, steady())
            return
        self._lease.see(decoded(entry.value or b"", self._lease), entry.revision or 0, steady())

    def _note(self) -> None:
        """Tell when this host begins to act, or no longer may."""
        before, self.active = self.active, self._lease.may_act(steady())
        if self.active and not before:
            log.info("bus: this %s is the active one, term %d", self._holder.role, self._lease.term)
            self._begun()
        elif before and not self.active:
            record = self._lease.record
            holder = record.instance if record is not None and record.instance != self._lease.instance else ""
            why = f"{holder} has the lease" if holder else "its lease ran out"
            log.warning("bus: this %s %s now: %s", self._holder.role, self._holder.idles, why)

    def _tell(self, what: str) -> None:
        if what != self._told:
            self._told = what
            log.warning("bus: the %s's lease cannot be read or renewed: %s; tried again", self._holder.role, what)


def decoded(value: bytes, lease: Lease) -> LeaseRecord:
    """A record that cannot be read is somebody's, and is taken over when it has not changed for long enough."""
    try:
        return _decode(value)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return LeaseRecord("unreadable", lease.term, lease.interval)
