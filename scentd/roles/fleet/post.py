"""Seals what goes to other hosts, and opens what comes from them. Every refusal has a name and is counted."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable
from typing import Protocol, TypeVar

import msgspec

from scentd.config.bus import Bus, BusHost
from scentd.core.fleet import seal
from scentd.core.fleet.order import Order, Serial, is_late
from scentd.core.fleet.seal import Ends, Kind
from scentd.wire import keys


class Numbered(Protocol):
    @property
    def serial(self) -> Serial: ...

    @property
    def at(self) -> float: ...


Said = TypeVar("Said", bound=Numbered)
REFUSED = ("too_long", "garbage", "version", "unknown_host", "wrong_key")


class Post:
    """One host's identity, and the secrets that it shares with the others."""

    def __init__(self, name: str, identity: keys.Identity, counters: Counter[str]) -> None:
        self.name = name
        self.identity = identity
        self.counters = counters
        self.hosts: dict[str, BusHost] = {}
        self._keys: dict[str, tuple[keys.Public, bytes]] = {}
        self._heard: dict[str, float] = {}  # of each host, steady seconds of its last message
        self._orders = {kind: Order() for kind in Kind}
        self._run = time.time_ns()
        self._number = 0
        counters.update(dict.fromkeys(REFUSED, 0))

    def configure(self, bus: Bus) -> None:
        before = {name: key for name, key in self._keys.items() if self.hosts[name] in bus.host}
        self.hosts = {host.name: host for host in bus.host}
        self._keys = {}
        for host in bus.host:
            public = keys.parse_public(host.public_key)
            self._keys[host.name] = before.get(host.name) or (public, keys.pair_secret(self.identity, public))

    def heard(self, duties: set[str]) -> dict[str, float | None]:
        """Of each host with one of these duties: seconds since its last message; None: there was none."""
        now = time.monotonic()
        named = (name for name, host in self.hosts.items() if duties & set(host.duties))
        return {name: round(now - self._heard[name], 1) if name in self._heard else None for name in named}

    def public(self, host: str) -> keys.Public:
        return self._keys[host][0]

    def serial(self) -> Serial:
        """Of the next message."""
        self._number += 1
        return Serial(self._run, self._number)

    def seal(self, kind: Kind, host: str, plain: bytes) -> bytes:
        return seal.seal(kind, self._to(host), secrets.token_bytes(seal.SALT_LEN), plain)

    def open(self, kind: Kind, message: bytes, duty: str) -> tuple[BusHost, bytes] | None:
        """A message's sender, who has this duty, and what he sealed for us; None, counted, if it is not so."""
        head = seal.head(message)
        if isinstance(head, str):
            self.counters[head] += 1
            return None
        host = self.hosts.get(head.sender)
        if host is None or duty not in host.duties or (head.kind, head.receiver) != (kind, self.name):
            self.counters["unknown_host"] += 1
            return None
        plain = seal.unseal(head, self._from(host.name), message)
        if plain is None:
            self.counters["wrong_key"] += 1
            return None
        self._heard[host.name] = time.monotonic()
        return host, plain

    def read(
        self, kind: Kind, message: bytes, duty: str, decode: Callable[[bytes], Said]
    ) -> tuple[BusHost, Said] | None:
        """The same, decoded, unless it is no newer than the last of this sender; counted either way."""
        opened = self.open(kind, message, duty)
        if opened is None:
            return None
        host, plain = opened
        try:
            said = decode(plain)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            self.counters["garbage"] += 1
            return None
        if is_late(said.at, time.time()):
            self.counters["wrong_clock"] += 1
            return None
        new = self._orders[kind].take(host.name, said.serial, time.monotonic())
        self.counters["taken" if new else "replayed"] += 1
        return (host, said) if new else None

    def open_own(self, kind: Kind, message: bytes) -> bytes | None:
        """What somebody of our own name and key sealed for one of the hosts; None if it is another's."""
        head = seal.head(message)
        if isinstance(head, str) or (head.kind, head.sender) != (kind, self.name) or head.receiver not in self.hosts:
            return None
        return seal.unseal(head, self._to(head.receiver), message)

    def _to(self, host: str) -> Ends:
        public, secret = self._keys[host]
        return Ends(self.name, self.identity.public, host, public, secret)

    def _from(self, host: str) -> Ends:
        public, secret = self._keys[host]
        return Ends(host, public, self.name, self.identity.public, secret)
