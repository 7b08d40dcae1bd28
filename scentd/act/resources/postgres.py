"""Read replicas of a PostgreSQL primary for a peer: real streaming standbys on this host, behind a pool of HAProxy.

What there is, is told by names alone: a replica has a number, a directory NUMBER-PORT (postgres_replica.py), a
replication slot at the primary and a server in the pool, each with that number. postgres_peer.py brings them in line.
"""

from __future__ import annotations

from collections.abc import Mapping

from scentd.act.resources.backend import Backend, BackendSetting, Refused
from scentd.act.resources.postgres_peer import PeerReplicas
from scentd.act.resources.postgres_section import PostgresResource


class PostgresBackend(Backend[PostgresResource]):
    """Counts NAME_base_backups, NAME_cleaned (what was left half-way, or changed by hand), NAME_cut (sessions)."""

    section = PostgresResource

    def __init__(self, resource: PostgresResource, setting: BackendSetting) -> None:
        super().__init__(resource, setting)
        self._peers = {peer: PeerReplicas(resource.of(peer), self.wait, self._count) for peer in setting.peers}

    def observe(self) -> Mapping[str, float]:
        return {peer: replicas.amount() for peer, replicas in self._peers.items()}

    def change(self, peer: str, amount: float) -> None:
        if peer not in self._peers:
            raise Refused(f"resource {self.resource.name}: does not serve {peer}; see its `peer`")
        self._peers[peer].bring(int(amount))

    def _count(self, what: str, number: int = 1) -> None:
        self.setting.tally.add(f"{self.resource.name}_{what}", number)
