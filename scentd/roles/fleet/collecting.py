"""Samples between hosts: a collector's host sends its own, a profiler takes those of others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from scentd.bus.nats import SAMPLES, NatsBus, subject
from scentd.config.sections import Config
from scentd.core.fleet import samples
from scentd.core.fleet.samples import Admission, HostSamples
from scentd.core.fleet.seal import Kind
from scentd.model import Samples
from scentd.roles.fleet.post import Post

GATHER = 0.2  # seconds in which the readings of a host's networks come together into one message


class SampleSender:
    """Sends this host's Samples to those that sign for their networks: together, and an alarm at once."""

    def __init__(self, post: Post, nats: NatsBus) -> None:
        self._post = post
        self._nats = nats
        self._waiting: dict[tuple[str, str], Samples] = {}  # by network and collector
        self._timer: asyncio.TimerHandle | None = None
        self._to: list[str] = []

    def configure(self) -> None:
        self._to = [host.name for host in self._post.hosts.values() if "sign" in host.duties]

    def take(self, said: Samples) -> None:
        if not self._to:
            return
        self._waiting[said.network, said.collector] = said
        if said.alarm:
            self._send()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER, self._send)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _send(self) -> None:
        self.stop()
        waiting, self._waiting = self._waiting, {}
        for name in self._to:
            host = self._post.hosts[name]
            for part in samples.parts([said for said in waiting.values() if host.serves(said.network)]):
                plain = samples.encode(HostSamples(self._post.serial(), time.time(), part))
                sealed = self._post.seal(Kind.SAMPLES, name, plain)
                self._nats.send(subject(SAMPLES, name, self._post.name), sealed)


class SampleTaker:
    """Takes Samples of other hosts' collectors, and publishes them to this host's profiler."""

    def __init__(self, post: Post, publish: Callable[[object], None]) -> None:
        self._post = post
        self._publish = publish
        self._admission = Admission(frozenset(), post.counters)

    @property
    def subject(self) -> str:
        return subject(SAMPLES, self._post.name, "*")

    def configure(self, config: Config) -> None:
        signed = frozenset(network.name for network in config.network if network.signs)
        self._admission = Admission(signed, self._post.counters)

    def take(self, message: bytes) -> None:
        found = self._post.read(Kind.SAMPLES, message, "collect", samples.decode)
        if found is not None:
            host, said = found
            for one in self._admission.admitted(said, host):
                self._publish(one)
