"""The decision log: JSON, one Decision a line, and the last ones in memory.

A disk that is full or a path that cannot be written stops nothing: what could not be written waits in
memory (up to KEEP decisions; older ones are lost, and counted) and is written when there is room again.
Every line in the file parses: a line that got only half way is taken back, or, where that is not possible
(the file is append-only), ended, so that it spoils no other.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator

import msgspec

from scentd.model import Decision

log = logging.getLogger(__name__)

KEEP = 1000
MODE = 0o640
BLOCK = 65536
SCAN_MAX = 16 * 1024 * 1024  # bytes that explain() reads of the file, from its end
WRITE_MAX = 256  # lines a write
ENCODER = msgspec.json.Encoder()
DECODER = msgspec.json.Decoder(Decision)


class DecisionLog:
    """Appends to `path`, which is made when there is something to write. May be used by several threads."""

    def __init__(self, path: str, keep: int = KEEP) -> None:
        self.path = path
        self._recent: deque[Decision] = deque(maxlen=keep)
        self._waiting: deque[bytes] = deque()
        self._keep = keep
        self._file: int | None = None
        self._torn = False  # the file does not end in a newline
        self._failing = False
        self._written = self._lost = self._errors = 0
        self._lock = threading.Lock()

    def append(self, decisions: Iterable[Decision]) -> None:
        """Remember the decisions and write them, now if possible. Never raises for the disk."""
        with self._lock:
            for decision in decisions:
                self._recent.append(decision)
                self._waiting.append(ENCODER.encode(decision) + b"\n")
            self._flush()
            while len(self._waiting) > self._keep:
                self._waiting.popleft()
                self._lost += 1

    def flush(self) -> None:
        """Try again to write what waits; call it now and then."""
        with self._lock:
            self._flush()

    def reopen(self) -> None:
        """After a rotation (SIGHUP): go on in a new file. A file that was moved is noticed without it."""
        with self._lock:
            self._close_file()
            self._flush()

    def close(self) -> None:
        """Write what can be written; the rest is lost, and counted."""
        with self._lock:
            self._flush()
            self._lost += len(self._waiting)
            self._waiting.clear()
            self._close_file()

    def counters(self) -> dict[str, int]:
        return {
            "decision_log_written": self._written,
            "decision_log_waiting": len(self._waiting),
            "decision_log_lost": self._lost,
            "decision_log_errors": self._errors,
        }

    def explain(self, peer: str = "", limit: int = 20) -> list[Decision]:
        """The last decisions about the peer ("" for all), newest first: from memory, then from the file."""
        with self._lock:
            recent = list(self._recent)
        last = [d for d in reversed(recent) if peer in ("", d.peer)][:limit]
        if len(last) == limit:
            return last
        known = set(recent)
        for line in lines_backwards(self.path, SCAN_MAX):
            try:
                decision = decoded(line)
            except msgspec.DecodeError:  # not ours, or a line ended half way
                continue
            if peer in ("", decision.peer) and decision not in known:
                last.append(decision)
                if len(last) == limit:
                    break
        return last

    def _flush(self) -> None:
        if not self._waiting:
            return
        try:
            file = self._opened()
            while self._waiting:
                self._write(file, [self._waiting[i] for i in range(min(WRITE_MAX, len(self._waiting)))])
        except OSError as error:
            self._errors += 1
            if not self._failing:
                log.error(
                    "decision log %s: %s; decisions are kept in memory and written when it works again",
                    self.path,
                    error.strerror,
                )
            self._failing = True
            self._close_file()
            return
        if self._failing:
            log.info("decision log %s: works again; %d decisions were lost so far", self.path, self._lost)
        self._failing = False

    def _write(self, file: int, lines: list[bytes]) -> None:
        """Write lines; those that got there whole are done with, whatever happens to the others. Raises OSError."""
        if self._torn:
            os.write(file, b"\n")
            self._torn = False
        data = b"".join(lines)
        size = os.fstat(file).st_size
        count = os.write(file, data)
        whole = data.rfind(b"\n", 0, count) + 1
        for _ in range(data.count(b"\n", 0, whole)):
            self._waiting.popleft()
            self._written += 1
        if count < len(data):
            cut(file, size + whole)  # if it cannot be, mend() ends it when the file is opened again
            raise OSError(errno.ENOSPC, "no room for a whole line")

    def _opened(self) -> int:
        """The file, opened anew if it was moved or deleted. Raises OSError."""
        if self._file is not None:
            if same_file(self._file, self.path):
                return self._file
            self._close_file()
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        self._file = os.open(self.path, flags, MODE)
        self._torn = not mend(self._file)
        return self._file

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def decoded(line: bytes) -> Decision:
    """Raises msgspec.DecodeError. Before schema 2 the peer was called network."""
    try:
        return DECODER.decode(line)
    except msgspec.ValidationError:
        return DECODER.decode(line.replace(b'"network":', b'"peer":', 1))


def same_file(file: int, path: str) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(file), there)


def mend(file: int) -> bool:
    """Take back the beginning of a line at the end. False if a newline is missing: it is whole, or cannot be cut."""
    size = os.fstat(file).st_size
    start = max(0, size - BLOCK)
    tail = os.pread(file, size - start, start)
    whole = tail.rfind(b"\n") + 1
    if whole == len(tail):
        return True
    try:
        decoded(tail[whole:])
    except msgspec.DecodeError:
        return (whole > 0 or start == 0) and cut(file, start + whole)
    return False


def cut(file: int, size: int) -> bool:
    try:
        os.ftruncate(file, size)
    except OSError:  # chattr +a
        return False
    return True


def lines_backwards(path: str, most: int) -> Iterator[bytes]:
    """The lines of a file from its end, without the newline; at most `most` bytes. None if it cannot be read."""
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below; a missing file is no error)
    except OSError:
        return
    with file:
        position = file.seek(0, os.SEEK_END)
        end = max(0, position - most)
        rest = b""
        while position > end:
            step = min(BLOCK, position - end)
            position -= step
            file.seek(position)
            first, *lines = (file.read(step) + rest).split(b"\n")
            rest = first
            yield from (line for line in reversed(lines) if line)
        if position == 0 and rest:
            yield rest
