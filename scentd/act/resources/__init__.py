"""The table of kinds of resource: one line a kind."""

from __future__ import annotations

from scentd.act.resources.backend import BackendType
from scentd.act.resources.bandwidth import BandwidthBackend
from scentd.act.resources.bandwidth_priority import BandwidthPriorityBackend
from scentd.act.resources.cache import CacheBackend
from scentd.act.resources.command import ProgramBackend
from scentd.act.resources.kubernetes import KubernetesBackend
from scentd.act.resources.monitor import MonitorBackend
from scentd.act.resources.postgres import PostgresBackend
from scentd.act.resources.systemd import SystemdBackend

RESOURCES: dict[str, BackendType] = {
    "bandwidth": BandwidthBackend,
    "bandwidth_priority": BandwidthPriorityBackend,
    "cache": CacheBackend,
    "command": ProgramBackend,
    "kubernetes": KubernetesBackend,
    "monitor": MonitorBackend,
    "postgres": PostgresBackend,
    "systemd": SystemdBackend,
}
