"""The history of decisions: what was decided, what became of it, and the views that policies saw. A SQLite database.

A thread of its own writes what has gathered in one transaction, so nobody waits for a disk. A full disk or a path that
cannot be written stops nothing: entries wait in memory, WAITING_MAX of them, and are written when it works; what is
lost beyond is counted. The oldest go when the file would be larger than `size` bytes, and those older than `age`
seconds.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from scentd.core.allocate.view import HISTORY
from scentd.model import Applied, Decision, Effect, Profile, View
from scentd.state.database import Database

log = logging.getLogger(__name__)

VERSION = 1
GATHER = 0.2  # seconds in which entries come together into one transaction
RETRY = 1.0  # seconds after a failure
TOGETHER = 1000  # entries in one transaction
WAITING_MAX = 20_000
VIEWS_A_SECOND = 200  # recorded; of very many networks some are left out, and counted
TRIM = 500  # transactions from one look at the age to the next
TRIM_TO = 0.9  # of the size, so that not each transaction finds the file too large
MODE = 0o640
NAMES = {  # of the columns of each table
    "decision": "at, peer, policy, epoch, action, target, before, after, reason",
    "applied": "at, resource, peer, amount, seconds, failure",
    "effect": "at, peer, policy, resource, metric, before, after, trend",
    "view": "at, peer, epoch, interval, overall, levels, bloom, load, threat",
}
SCHEMA = tuple(
    statement
    for table, names in NAMES.items()
    for statement in (
        f"CREATE TABLE IF NOT EXISTS {table} (id INTEGER PRIMARY KEY, {names})",
        f"CREATE INDEX IF NOT EXISTS {table}_peer ON {table} (peer, id)",
    )
)
INSERT = {
    table: f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(names.split(', ')))})"  # noqa: S608 (ours)
    for table, names in NAMES.items()
}
TRIMMED = ("view", "applied", "effect", "decision")  # in this order: decisions are few, and asked for longest
_levels = msgspec.msgpack.Decoder(dict[str, float])


Row = tuple[str, tuple[Any, ...]]  # a table, and the values of its columns


class Account(NamedTuple):
    """What the history knows of one peer, newest first."""

    decisions: list[Decision]
    applied: list[tuple[float, Applied]]  # with the Unix time
    effects: list[Effect]


class History:
    """Takes entries from any thread; never waits, never raises."""

    def __init__(self, path: str, size: float, age: float) -> None:
        self._size, self._age = size, age
        self._path = Path(path)
        self._database = Database(self._path, VERSION, SCHEMA, MODE)
        self._changed = threading.Condition()
        self._waiting: deque[Row] = deque()
        self._taken: list[Row] = []  # what is being written
        self._counts: Counter[str] = Counter()
        self._failing = self._closing = False
        self._views_at, self._views_left = 0.0, VIEWS_A_SECOND
        self._until_trim = 0
        self._thread = threading.Thread(target=self._work, name="history", daemon=True)
        self._thread.start()

    # -- what happened -------------------------------------------------------

    def append(self, decisions: Iterable[Decision]) -> None:
        self._add([("decision", decision_row(d)) for d in decisions])

    def applied(self, applied: Applied, at: float) -> None:
        a = applied
        self._add([("applied", (at, a.resource, a.peer, a.amount, a.seconds, a.failure))])

    def effects(self, effects: Iterable[Effect]) -> None:
        self._add(
            [("effect", (e.at, e.peer, e.policy, e.resource, e.metric, e.before, e.after, e.trend)) for e in effects]
        )

    def record(self, views: Iterable[View], now: float) -> None:
        """Keep what policies saw, for a replay: VIEWS_A_SECOND at most."""
        if not 0 <= now - self._views_at < 1:
            self._views_at, self._views_left = now, VIEWS_A_SECOND
        seen = list(views)
        kept = seen[: self._views_left]
        self._views_left -= len(kept)
        with self._changed:
            self._counts["history_views_skipped"] += len(seen) - len(kept)
        self._add([("view", view_row(view)) for view in kept])

    def counters(self) -> dict[str, int]:
        names = ("written", "lost", "errors", "views_skipped")
        with self._changed:
            return {f"history_{n}": self._counts[f"history_{n}"] for n in names} | {
                "history_waiting": len(self._waiting)
            }

    def close(self) -> None:
        """Write what waits, if possible; what cannot be written is lost, and counted."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(5.0)

    def settle(self, seconds: float = 5.0) -> bool:
        """Wait until all is written; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._taken, seconds)

    # -- what is known -------------------------------------------------------

    def account(self, peer: str, limit: int) -> Account:
        """The last decisions about a peer and what became of them. It may read the disk."""
        self.settle(1.0)
        with self._changed:
            entries = [*self._taken, *self._waiting]
        waiting = [row for table, row in entries if table == "decision" and row[1] == peer]
        newest = [Decision(*row) for row in reversed(waiting)]
        try:
            return self._read(peer, limit, newest)
        except sqlite3.Error:  # its reason was logged
            return Account(newest[:limit], [], [])

    def _read(self, peer: str, limit: int, newest: list[Decision]) -> Account:
        if not self._path.exists():
            return Account(newest[:limit], [], [])
        with closing(reading(self._path)) as connection:

            def last(table: str) -> Iterable[tuple[Any, ...]]:
                query = f"SELECT {NAMES[table]} FROM {table} WHERE peer = ? ORDER BY id DESC LIMIT ?"  # noqa: S608
                return connection.execute(query, (peer, limit))

            decisions = newest + [Decision(*row) for row in last("decision")]
            applied = [(row[0], Applied(*row[1:])) for row in last("applied")]
            return Account(decisions[:limit], applied, [Effect(*row) for row in last("effect")])

    # -- the writing thread --------------------------------------------------

    def _add(self, rows: Sequence[Row]) -> None:
        if rows:
            with self._changed:
                self._waiting.extend(rows)
                self._forget()
                self._changed.notify_all()

    def _forget(self) -> None:
        """Lose the oldest of what is too much."""
        while len(self._waiting) > WAITING_MAX:
            self._waiting.popleft()
            self._counts["history_lost"] += 1

    def _work(self) -> None:
        self._write([])  # opens it: what is wrong is told at the start, and what a killed daemon has left is tidied up
        while self._take():
            written = self._write(self._taken)
            with self._changed:
                if written:
                    self._counts["history_written"] += len(self._taken)
                else:
                    self._waiting.extendleft(reversed(self._taken))
                    self._forget()
                self._taken = []
                self._changed.notify_all()
                if self._closing and not written:
                    self._counts["history_lost"] += len(self._waiting)
                    break
                self._changed.wait_for(lambda: self._closing, GATHER if written else RETRY)
        self._database.close()

    def _take(self) -> bool:
        """Take what waits; False: the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            self._taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), TOGETHER))]
            return bool(self._taken)

    def _write(self, rows: list[Row]) -> bool:
        """Write the rows, whole or not at all. Those that SQLite cannot hold leave the list."""
        try:
            with self._database.connect() as connection:
                for entry in list(rows):
                    if not self._insert(connection, *entry):
                        rows.remove(entry)
            self._until_trim -= 1
            if self._until_trim <= 0:
                self._until_trim = TRIM
                forget_older(connection, time.time() - self._age)
            trim(connection, self._size)
        except sqlite3.Error as error:
            with self._changed:
                self._counts["history_errors"] += 1
            if not self._failing:
                log.error("%s: %s; decisions are kept in memory, and written when it works again", self._path, error)
            self._failing = True
            self._database.fail(error)
            return False
        if self._failing:
            log.info("%s: works again; %d entries were lost", self._path, self._counts["history_lost"])
        self._failing = False
        return True

    def _insert(self, connection: sqlite3.Connection, table: str, row: tuple[Any, ...]) -> bool:
        """A value that SQLite cannot hold must not keep the others waiting for ever."""
        try:
            connection.execute(INSERT[table], row)
        except (ValueError, OverflowError) as error:  # half a surrogate pair, an integer of more than 64 bits
            log.error("%s: an entry of %s is left out: %s", self._path, table, error)
            with self._changed:
                self._counts["history_lost"] += 1
            return False
        return True


def reading(path: Path) -> sqlite3.Connection:
    """A connection that only reads. Raises sqlite3.Error, of a newer database too."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=1.0)
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise sqlite3.OperationalError(f"is of version {version}, and this scentd knows {VERSION}")
    except BaseException:
        connection.close()
        raise
    return connection


def views(path: Path, since: float) -> Iterator[View]:
    """The recorded views from `since` (Unix time) on, oldest first, each with what was known of its peer before.

    Raises sqlite3.Error.
    """
    known: dict[str, tuple[Profile, ...]] = {}
    query = f"SELECT {NAMES['view']} FROM view WHERE at >= ? ORDER BY id"  # noqa: S608 (names of ours)
    with closing(reading(path)) as connection:
        for at, peer, epoch, interval, overall, levels, bloom, load, threat in connection.execute(query, (since,)):
            profile, before = (
                Profile(peer, epoch, interval, overall, _levels.decode(levels), bloom),
                known.get(peer, ()),
            )
            if not before or before[0].epoch < epoch:
                known[peer] = (profile, *before[: HISTORY - 1])
            yield View(peer, known[peer], at, load, threat, epoch)


def forget_older(connection: sqlite3.Connection, oldest: float) -> None:
    """Remove what is from before `oldest` (Unix time)."""
    with connection:
        for table in TRIMMED:
            connection.execute(f"DELETE FROM {table} WHERE at < ?", (oldest,))  # noqa: S608 (a name of ours)


def trim(connection: sqlite3.Connection, size: float) -> None:
    """If the file holds more than `size` bytes, remove the oldest, and give the disk its pages back."""
    if used(connection) <= size:
        return
    for table in TRIMMED:
        while used(connection) > TRIM_TO * size and forget_oldest(connection, table):
            pass
    connection.execute("PRAGMA incremental_vacuum").fetchall()  # each row that is fetched is a page
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def forget_oldest(connection: sqlite3.Connection, table: str) -> bool:
    """Remove the oldest tenth of a table; False: it is empty."""
    first, last = connection.execute(f"SELECT min(id), max(id) FROM {table}").fetchone()  # noqa: S608 (ours)
    if first is None:
        return False
    with connection:
        connection.execute(f"DELETE FROM {table} WHERE id <= ?", (first + (last - first) // 10,))  # noqa: S608 (ours)
    return True


def used(connection: sqlite3.Connection) -> float:
    """Bytes of the pages that hold something."""
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return float((pages - free) * size)


def decision_row(d: Decision) -> tuple[Any, ...]:
    return d.at, d.peer, d.policy, d.epoch, d.action, d.target, d.before, d.after, d.reason


def view_row(view: View) -> tuple[Any, ...]:
    p = view.profile
    levels = msgspec.msgpack.encode(p.levels)
    return (
        view.received_at,
        view.peer,
        p.epoch,
        p.interval,
        p.overall,
        levels,
        p.bloom,
        view.glance_load,
        view.glance_threat,
    )
