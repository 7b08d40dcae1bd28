"""The primary of PostgreSQL as its replicas need it: replication slots, who streams, how far the log is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scentd.act.resources.backend import Refused
from scentd.errors import HostError

if TYPE_CHECKING:
    import psycopg

# What a replica must have at least as much of as the primary (PostgreSQL's manual, "Hot Standby").
AT_LEAST = (
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
)
STATEMENT_TIMEOUT = 10_000  # ms; each of our statements is one look or one slot
TO_REPLICATE = "write `ALTER ROLE {user} REPLICATION` at the primary"
WAY_OUT = {  # what a server says (in English), and what to do about it
    "for replication connection": "add `host replication {user} ADDRESS-OF-THIS-HOST scram-sha-256` to the primary's "
    "pg_hba.conf, and reload it",
    "no pg_hba.conf entry": "add `host {database} {user} ADDRESS-OF-THIS-HOST scram-sha-256` to the pg_hba.conf of "
    "that server, and reload it",
    "replication role": TO_REPLICATE,
    "permission denied to": TO_REPLICATE,
    "permission denied for function": "write `GRANT EXECUTE ON` that function `TO {user}` at the primary",
    "password authentication failed": "write the right password into `passfile`",
    "no password supplied": "name a file with the password (format of .pgpass, mode 0600) in `passfile`",
    "is not permitted to log in": "write `ALTER ROLE {user} LOGIN` at the primary",
    "all replication slots are in use": "raise max_replication_slots at the primary, or drop slots that nobody uses",
    "wal_level": "set wal_level = replica at the primary, and restart it",
    "max_wal_senders": "raise max_wal_senders at the primary, and restart it",
}


@dataclass(frozen=True, slots=True)
class SlotState:
    """A physical replication slot of ours."""

    active: bool
    streams: bool


def error_of(where: str, text: str, user: str, database: str) -> HostError:
    """What a server has said, as HostError; Refused if somebody must grant something."""
    line = " ".join(text.split())
    for words, way_out in WAY_OUT.items():
        if words in line:
            return Refused(f"{where}: {line}: {way_out.format(user=user, database=database)}")
    return HostError(f"{where}: {line}")


class PostgresServer:
    """One connection to a server. Raises HostError or Refused."""

    def __init__(self, where: str, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        self._where, self._connection = where, connection

    def rows(self, query: str, *values: object) -> Sequence[tuple[Any, ...]]:
        cursor = self._connection.execute(query.encode(), values)
        return cursor.fetchall()

    @property
    def major(self) -> int:
        return self._connection.info.server_version // 10000

    # -- of the primary -------------------------------------------------------

    def slots(self, prefix: str) -> dict[str, SlotState]:
        if not self.rows("SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')")[0][0]:
            user = self._connection.info.user
            raise Refused(f"{self._where}: cannot see who streams: write `GRANT pg_read_all_stats TO {user}` there")
        found = self.rows(
            "SELECT s.slot_name, s.active, coalesce(r.state = 'streaming', false) FROM pg_replication_slots s "
            "LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid "
            "WHERE s.slot_type = 'physical' AND starts_with(s.slot_name::text, %s)",
            prefix,
        )
        return {name: SlotState(active, streams) for name, active, streams in found}

    def create_slot(self, name: str) -> None:
        self.rows("SELECT pg_create_physical_replication_slot(%s, true)", name)

    def drop_slot(self, name: str) -> bool:
        """Whether it is gone. Who still reads from it is sent away first."""
        users = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s AND active"
        if self.rows(users, name):
            return False
        free = (
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s AND NOT active"
        )
        self.rows(free, name)
        return not self.rows("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", name)

    def position(self) -> int:
        """Bytes of the log that are written."""
        return int(self.rows("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')")[0][0])

    def at_least(self) -> dict[str, str]:
        """The settings of which a replica must have as much."""
        return dict(self.rows("SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", list(AT_LEAST)))

    # -- of a replica ---------------------------------------------------------

    def replayed(self) -> int | None:
        """Bytes of the log that a replica has replayed; None if the server is no replica."""
        query = "SELECT pg_is_in_recovery(), coalesce(pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0'), 0)"
        recovers, position = self.rows(query)[0]
        return int(position) if recovers else None


@contextmanager
def connection_to(where: str, conninfo: str, secret: bytes, timeout: float, **parts: Any) -> Iterator[PostgresServer]:
    """A connection. `secret`: the content of a password file; libpq reads it from memory, because the daemon may not be
    allowed to read the file itself. `parts` replace those of `conninfo`.
    """
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    limits = {"connect_timeout": max(2, round(timeout)), "tcp_user_timeout": round(timeout * 1000)}
    told = {**conninfo_to_dict(conninfo), **parts}
    names = str(told.get("user", "")), str(told.get("dbname", "postgres"))
    options = f"-c statement_timeout={STATEMENT_TIMEOUT}"
    memory = os.memfd_create("scentd-passfile")
    try:
        os.fchmod(memory, 0o600)  # libpq ignores a file that others may read
        os.write(memory, secret)
        # Without an encoding a server with SQL_ASCII answers bytes.
        defaults = {"dbname": "postgres", "application_name": "scentd", "client_encoding": "UTF8"}
        told = {**defaults, **limits, **told, "passfile": f"/proc/self/fd/{memory}"}
        with psycopg.connect(**told, options=options, autocommit=True) as connection:
            yield PostgresServer(where, connection)
    except psycopg.Error as error:
        raise error_of(where, str(error), *names) from None
    finally:
        os.close(memory)
