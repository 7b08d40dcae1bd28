"""What the allocator must know after a restart: desired amounts, wishes, cooldowns, quarantines, what is held; and
what a host must know of what an allocator elsewhere has wanted.

A SQLite database: 100,000 networks have too many rows to write a file whole each second. Rows are written as they
change, in one transaction a second on a thread; kill -9 loses a second at most.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scentd.state.database import Database

log = logging.getLogger(__name__)

VERSION = 1
Row = tuple[str, str, str]  # kind of row, and its key in two parts
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS state (kind TEXT, a TEXT, b TEXT, value BLOB, PRIMARY KEY (kind, a, b)) WITHOUT ROWID",
)


class AllocationFile:
    """The rows on disk. `save` never waits and never raises: a failure is logged, counted, and tried again."""

    def __init__(self, path: Path, survives_power: bool = False) -> None:
        """`survives_power`: what was written is there after a loss of power, too, at the cost of a sync each time."""
        self.failures = 0
        self._database = Database(path, VERSION, SCHEMA, survives_power=survives_power)
        self._waiting: dict[Row, bytes | None] = {}  # None: the row goes
        self._lock = threading.Lock()
        self._failing = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="allocation-file")

    def load(self) -> dict[Row, bytes]:
        """All rows; none if they cannot be read."""
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

    def wait(self) -> None:
        """Until what was given to `save` is written, or has failed."""
        self._thread.submit(lambda: None).result()

    def close(self) -> None:
        """Write what waits, and close."""
        self._thread.submit(self._close).result()
        self._thread.shutdown()

    def _load(self) -> dict[Row, bytes]:
        try:
            rows = self._database.connect().execute("SELECT kind, a, b, value FROM state")
            return {(kind, a, b): value for kind, a, b, value in rows}
        except sqlite3.Error as error:
            self._fail(error)
            return {}

    def _write(self) -> None:
        with self._lock:
            rows = dict(self._waiting)
        kept = [(*row, value) for row, value in rows.items() if value]
        gone = [row for row, value in rows.items() if not value]
        try:
            with self._database.connect() as connection:
                connection.executemany("REPLACE INTO state VALUES (?, ?, ?, ?)", kept)
                connection.executemany("DELETE FROM state WHERE kind = ? AND a = ? AND b = ?", gone)
        except sqlite3.Error as error:
            self._fail(error)
            return
        with self._lock:
            self._waiting = {row: v for row, v in self._waiting.items() if row not in rows or rows[row] is not v}
        if self._failing:
            log.info("%s: works again", self._database.path)
        self._failing = False

    def _fail(self, error: sqlite3.Error) -> None:
        self.failures += 1
        if not self._failing:
            log.error("%s: %s; what policies decided is kept in memory meanwhile", self._database.path, error)
        self._failing = True
        self._database.fail(error)

    def _close(self) -> None:
        if self._waiting:
            self._write()
        self._database.close()
