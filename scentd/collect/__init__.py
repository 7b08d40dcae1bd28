"""The table of sources: telemetry in, one line a kind; everything about a kind is in its file."""

from __future__ import annotations

from scentd.collect.application import ApplicationReader, ApplicationSource
from scentd.collect.bandwidth import BandwidthReader, BandwidthSource
from scentd.collect.cpu import CpuReader, CpuSource
from scentd.collect.eve import EveReader, EveSource
from scentd.collect.memory import MemoryReader, MemorySource
from scentd.collect.pressure import PressureReader, PressureSource
from scentd.collect.probe import ProbeReader, ProbeSource
from scentd.collect.prometheus import PrometheusReader, PrometheusSource
from scentd.collect.source import SourceKind
from scentd.collect.tcp import TcpReader, TcpSource

SOURCES: dict[str, SourceKind] = {
    "cpu": SourceKind(CpuSource, CpuReader),
    "memory": SourceKind(MemorySource, MemoryReader),
    "pressure": SourceKind(PressureSource, PressureReader),
    "bandwidth": SourceKind(BandwidthSource, BandwidthReader),
    "application": SourceKind(ApplicationSource, ApplicationReader),
    "tcp": SourceKind(TcpSource, TcpReader),
    "probe": SourceKind(ProbeSource, ProbeReader),
    "eve": SourceKind(EveSource, EveReader),
    "prometheus": SourceKind(PrometheusSource, PrometheusReader),
}
