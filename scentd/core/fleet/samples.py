"""What a collector's host says to a profiler: one message an interval for all its networks. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

import msgspec
from msgspec import Struct

from scentd.config.bus import BusHost
from scentd.core.fleet.order import Serial
from scentd.model import DETAIL_MAX, Sample, Samples, SecurityEvent

NODE_MAX = 255  # characters
PART_MAX = 6000  # samples, events and their heads in one message, of 150 bytes each at most as a rule
MAX_COLLECTORS = 16  # of a host for a network: its sources are one, and each Prometheus server
NAME = re.compile(r"[^;\x00-\x1f\x7f]{0,63}")  # of a metric, role or region: part of an item (wire/README.md, 6.4)


class HostSamples(Struct, frozen=True, array_like=True):
    serial: Serial
    at: float  # Unix time
    samples: tuple[Samples, ...]


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(HostSamples).decode


def parts(whole: Iterable[Samples]) -> Iterator[tuple[Samples, ...]]:
    """As few messages as these fit into: mostly one. More than a message holds of one network is too long for all."""
    part: list[Samples] = []
    size = 0
    for samples in whole:
        more = 1 + len(samples.samples) + len(samples.events)
        if part and size + more > PART_MAX:
            yield tuple(part)
            part, size = [], 0
        part.append(samples)
        size += more
    if part:
        yield tuple(part)


class Admission:
    """What counts of hosts' messages: of networks signed here, from hosts that may speak for them; the rest is counted.

    A collector is of its host, whatever it calls itself: nobody speaks in another's name. A host has MAX_COLLECTORS for
    a network, however many names it finds, so that it takes no room from others.
    """

    def __init__(self, networks: frozenset[str], counters: Counter[str]) -> None:
        self._networks = networks
        self._counters = counters
        self._collectors: dict[tuple[str, str], set[str]] = {}  # by host and network

    def admitted(self, message: HostSamples, host: BusHost) -> list[Samples]:
        found = []
        for samples in message.samples:
            why_not = self._why_not(samples, host)
            if why_not:
                self._counters[why_not] += 1
                continue
            collector = f"{host.name}/{samples.collector}" if samples.collector else host.name
            kept = tuple(filter(is_named, samples.samples)), tuple(filter(is_event, samples.events))
            self._counters["bad_name"] += sum(map(len, (samples.samples, samples.events))) - sum(map(len, kept))
            found.append(replace(samples, collector=collector, samples=kept[0], events=kept[1]))
        return found

    def _why_not(self, samples: Samples, host: BusHost) -> str:
        if samples.network not in self._networks:
            return "unknown_network"
        if not host.serves(samples.network):
            return "not_allowed"
        if not is_node(samples.collector):
            return "bad_name"
        known = self._collectors.setdefault((host.name, samples.network), set())
        if samples.collector not in known and len(known) >= MAX_COLLECTORS:
            return "too_many_collectors"
        known.add(samples.collector)
        return ""


def is_node(text: str) -> bool:
    return len(text) <= NODE_MAX and text.isprintable()


def is_named(sample: Sample) -> bool:
    """Whether its names can be names."""
    return is_node(sample.node) and all(map(NAME.fullmatch, (sample.metric, sample.role, sample.region)))


def is_event(event: SecurityEvent) -> bool:
    return is_node(event.node) and len(event.detail) <= DETAIL_MAX
