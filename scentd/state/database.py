"""A SQLite database of ours: opened with care, moved aside if it is none. Belongs to one thread.

Write-ahead log, so that readers never wait; kill -9 loses what was not committed. Errors are sqlite3's.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger(__name__)

WAIT = 1.0  # seconds for another process that has it locked


class Database:
    """`schema`: the statements that make what is missing; `version`: what they make.

    `survives_power`: what was committed is there after a loss of power, too, at the cost of a sync each time.
    """

    def __init__(
        self, path: Path, version: int, schema: Sequence[str], mode: int = 0o600, survives_power: bool = False
    ) -> None:
        self.path = path
        self._version = version
        self._schema = schema
        self._mode = mode
        self._synchronous = "FULL" if survives_power else "NORMAL"
        self._connection: sqlite3.Connection | None = None

    def connect(self) -> sqlite3.Connection:
        """The connection. A file that is no database is moved aside, and a new one begun."""
        if self._connection is None:
            try:
                self._connection = self._open()
            except sqlite3.DatabaseError as error:
                if not is_corrupt(error):
                    raise
                self._move_aside(error)
                self._connection = self._open()
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def fail(self, error: sqlite3.Error) -> None:
        """Close after this error. A file that is found corrupt is moved aside, and the next connection begins anew."""
        self.close()
        if is_corrupt(error):
            try:
                self._move_aside(error)
            except sqlite3.OperationalError as why:
                log.error("%s: %s", self.path, why)

    def _open(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        except OSError as error:
            raise sqlite3.OperationalError(f"{self.path.parent}: {error.strerror}") from None
        connection = sqlite3.connect(self.path, timeout=WAIT)
        try:
            os.chmod(self.path, self._mode)
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version not in (0, self._version):
                what = f"is of version {version}, and this scentd knows {self._version}; move it away"
                raise sqlite3.OperationalError(what)
            for statement in self._schema:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {self._version}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _move_aside(self, error: sqlite3.Error) -> None:
        aside = self.path.with_name(f"{self.path.name}.corrupt-{int(time.time())}")
        log.error("%s: %s; moved to %s, and begun anew", self.path, error, aside.name)
        for suffix in ("", "-wal", "-shm"):
            try:
                os.replace(f"{self.path}{suffix}", f"{aside}{suffix}")
            except FileNotFoundError:
                continue
            except OSError as why:
                raise sqlite3.OperationalError(f"cannot be moved aside: {why.strerror}") from None


def is_corrupt(error: sqlite3.Error) -> bool:
    """Whether the file is none of SQLite's, or damaged. These errors alone have no class of their own."""
    return type(error) is sqlite3.DatabaseError
