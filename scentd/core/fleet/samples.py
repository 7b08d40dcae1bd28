"""What a collector's host says to a profiler: one message an interval for all its networks. Pure."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import msgspec
from msgspec import Struct

from scentd.config.bus import BusHost
from scentd.core.fleet.order import Serial
from scentd.model import DETAIL_MAX, Sample, Samples, SecurityEvent

NODE_MAX = 255  # characters
NAME = re.compile(r"[^;\x00-\x1f\x7f]{0,63}")  # of a metric, role or region: part of an item (wire/README.md, 6.4)


class HostSamples(Struct, frozen=True, array_like=True):
    serial: Serial
    samples: tuple[Samples, ...]


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(HostSamples).decode


def admitted(message: HostSamples, host: BusHost, networks: frozenset[str], counters: Counter[str]) -> list[Samples]:
    """What counts of a message: of networks signed here for which the host may speak. The rest is counted, by name.

    A collector is of its host, whatever it calls itself: nobody speaks in another's name.
    """
    found = []
    for samples in message.samples:
        if samples.network not in networks:
            counters["unknown_network"] += 1
        elif not host.serves(samples.network):
            counters["not_allowed"] += 1
        else:
            collector = f"{host.name}/{samples.collector}" if samples.collector else host.name
            kept = tuple(filter(is_named, samples.samples)), tuple(filter(is_event, samples.events))
            counters["bad_name"] += len(samples.samples) - len(kept[0]) + len(samples.events) - len(kept[1])
            found.append(replace(samples, collector=collector[:NODE_MAX], samples=kept[0], events=kept[1]))
    return found


def is_node(text: str) -> bool:
    return len(text) <= NODE_MAX and text.isprintable()


def is_named(sample: Sample) -> bool:
    """Whether its names can be names."""
    return is_node(sample.node) and all(map(NAME.fullmatch, (sample.metric, sample.role, sample.region)))


def is_event(event: SecurityEvent) -> bool:
    return is_node(event.node) and len(event.detail) <= DETAIL_MAX
