"""The table of sources: telemetry in, one line a kind; everything about a kind is in its file."""

from __future__ import annotations

from scentd.collect.bandwidth import BandwidthReader, BandwidthSource
from scentd.collect.clamav import ClamavReader, ClamavSource
from scentd.collect.cpu import CpuReader, CpuSource
from scentd.collect.eve import EveReader, EveSource
from scentd.collect.event import ReportedReader, ReportedSource
from scentd.collect.memory import MemoryReader, MemorySource
from scentd.collect.prometheus import PrometheusReader, PrometheusSource
from scentd.collect.source import SourceKind
from scentd.collect.sshd import SshdReader, SshdSource
from scentd.collect.tcp import TcpReader, TcpSource

SOURCES: dict[str, SourceKind] = {
    "cpu": SourceKind(CpuSource, CpuReader),
    "memory": SourceKind(MemorySource, MemoryReader),
    "bandwidth": SourceKind(BandwidthSource, BandwidthReader),
    "tcp": SourceKind(TcpSource, TcpReader),
    "eve": SourceKind(EveSource, EveReader),
    "event": SourceKind(ReportedSource, ReportedReader),
    "sshd": SourceKind(SshdSource, SshdReader),
    "clamav": SourceKind(ClamavSource, ClamavReader),
    "prometheus": SourceKind(PrometheusSource, PrometheusReader),
}
