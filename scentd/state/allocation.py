"""What the allocator must know after a restart: desired amounts, wishes, cooldowns, quarantines, what is held.

A SQLite database (write-ahead log): 100,000 networks have too many rows to write a file whole each second. Rows are
written as they change, in one transaction a second on a thread; kill -9 loses a second at most, and a database that
cannot be read is moved aside, said, and begun anew.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

log = logging.getLogger(__name__)

VERSION = 1
Row = tuple[str, str, str]  # kind of row, and its key in two parts
TABLE = (
    "CREATE TABLE IF NOT EXISTS state (kind TEXT, a TEXT, b TEXT, value BLOB, PRIMARY KEY (kind, a, b)) WITHOUT ROWID"
)


class AllocationFile:
    """The rows on disk. `save` never waits and never raises: a failure is logged, counted, and tried again."""

    def __init__(self, path: Path) -> None:
        self.failures = 0
        self._path = path
        self._waiting: dict[Row, bytes | None] = {}  # None: the row goes
        self._lock = threading.Lock()
        self._failing = False
        self._connection: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="allocation-file")

    def load(self) -> dict[Row, bytes]:
        """All rows."""
        return self._thread.submit(self._load).result()

    def save(self, rows: Mapping[Row, bytes | None]) -> None:
        """Write these rows soon; None removes one."""
        if not rows and not self._failing:
            return
        with self._lock:
            idle = not self._waiting or self._failing
            self._waiting.update(rows)
        if idle:
            self._thread.submit(self._write)

    def close(self) -> None:
        """Write what waits, and close."""
        self._thread.submit(self._close).result()
        self._thread.shutdown()

    def _load(self) -> dict[Row, bytes]:
        try:
            return self._read()
        except sqlite3.OperationalError as error:
            self._fail(error)
            return {}
        except sqlite3.DatabaseError as error:
            aside = self._path.with_name(f"{self._path.name}.corrupt-{int(time.time())}")
            log.error("%s: %s; moved to %s, and policies begin anew", self._path, error, aside.name)
            self._disconnect()
            self._move(aside)
            return self._load_new()

    def _load_new(self) -> dict[Row, bytes]:
        try:
            return self._read()
        except sqlite3.Error as error:
            self._fail(error)
            return {}

    def _move(self, aside: Path) -> None:
        for suffix in ("", "-wal", "-shm"):
            try:
                os.replace(f"{self._path}{suffix}", f"{aside}{suffix}")
            except FileNotFoundError:
                continue
            except OSError as error:
                log.error("%s%s: %s", self._path, suffix, error.strerror)

    def _read(self) -> dict[Row, bytes]:
        rows = self._connect().execute("SELECT kind, a, b, value FROM state")
        return {(kind, a, b): value for kind, a, b, value in rows}

    def _write(self) -> None:
        with self._lock:
            rows = dict(self._waiting)
        try:
            connection = self._connect()
            with connection:
                connection.executemany(
                    "REPLACE INTO state VALUES (?, ?, ?, ?)", [(*row, value) for row, value in rows.items() if value]
                )
                connection.executemany(
                    "DELETE FROM state WHERE kind = ? AND a = ? AND b = ?",
                    [r for r, value in rows.items() if not value],
                )
        except sqlite3.Error as error:
            self._fail(error)
            return
        with self._lock:
            self._waiting = {row: v for row, v in self._waiting.items() if row not in rows or rows[row] is not v}
        if self._failing:
            log.info("%s: works again", self._path)
        self._failing = False

    def _fail(self, error: sqlite3.Error) -> None:
        self.failures += 1
        if not self._failing:
            log.error(
                "%s: %s; what policies have decided is kept in memory, and written when it works", self._path, error
            )
        self._failing = True
        self._disconnect()

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            connection = sqlite3.connect(self._path, timeout=1.0)
            self._connection = connection
            os.chmod(self._path, 0o600)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version not in (0, VERSION):
                raise sqlite3.OperationalError(f"is of version {version}, and this scentd knows {VERSION}; remove it")
            connection.execute(TABLE)
            connection.execute(f"PRAGMA user_version = {VERSION}")
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _close(self) -> None:
        if self._waiting:
            self._write()
        self._disconnect()
