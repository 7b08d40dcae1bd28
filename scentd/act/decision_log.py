"""The decision log: JSON, one Decision a line, and the last ones in memory.

A full disk or a path that cannot be written stops nothing: decisions that cannot be written wait in memory (up
to KEEP of them; older ones are lost, and counted) and are written when that works again.
Every complete line in the file parses. A line that was written half is cut off again. If that is not possible
(the file is append-only), a newline ends it, so that it spoils no other line.
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
    """Appends to `path`; the first write makes the file. May be used by several threads."""

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
        """Keep the decisions in memory and write them, now if possible. An error of the disk does not raise."""
        with self._lock:
            for decision in decisions:
                self._recent.append(decision)
                self._waiting.append(ENCODER.encode(decision) + b"\n")
            self._flush()
            while len(self._waiting) > self._keep:
                self._waiting.popleft()
                self._lost += 1

    def flush(self) -> None:
        """Try again to write the waiting decisions; call it now and then."""
        with self._lock:
            self._flush()

    def reopen(self, path: str) -> None:
        """Go on in another file, or in a new one after a rotation. A moved file is noticed without this call, too."""
        with self._lock:
            self._close_file()
            self.path = path
            self._flush()

    def close(self) -> None:
        """Write the waiting decisions if possible, and close; the others are lost, and counted."""
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
        in_memory = set(recent)
        for line in lines_backwards(self.path, SCAN_MAX):
            try:
                decision = decode_line(line)
            except msgspec.DecodeError:  # not our line, or one that was written half
                continue
            if peer in ("", decision.peer) and decision not in in_memory:
                last.append(decision)
                if len(last) == limit:
                    break
        return last

    def _flush(self) -> None:
        if not self._waiting:
            return
        try:
            file = self._open()
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
        """Write lines and forget those that were written whole, even if the others fail. Raises OSError."""
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
            truncate(file, size + whole)  # if that fails, the next opening sets _torn, and a newline ends the line
            raise OSError(errno.ENOSPC, "no room for a whole line")

    def _open(self) -> int:
        """Return the file, opened again if it was moved or deleted. Raises OSError."""
        if self._file is not None:
            if same_file(self._file, self.path):
                return self._file
            self._close_file()
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        self._file = os.open(self.path, flags, MODE)
        self._torn = not repair_end(self._file)
        return self._file

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def decode_line(line: bytes) -> Decision:
    """Decode a line; before schema 2 the peer was called network. Raises msgspec.DecodeError."""
    try:
        return DECODER.decode(line)
    except msgspec.ValidationError:
        return DECODER.decode(line.replace(b'"network":', b'"peer":', 1))


def same_file(file: int, path: str) -> bool:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(file), status)


def repair_end(file: int) -> bool:
    """Cut off half a line at the file's end. False if a newline is missing then: the last line is whole, or stays."""
    size = os.fstat(file).st_size
    start = max(0, size - BLOCK)
    tail = os.pread(file, size - start, start)
    whole = tail.rfind(b"\n") + 1
    if whole == len(tail):
        return True
    try:
        decode_line(tail[whole:])
    except msgspec.DecodeError:
        return (whole > 0 or start == 0) and truncate(file, start + whole)
    return False


def truncate(file: int, size: int) -> bool:
    try:
        os.ftruncate(file, size)
    except OSError:  # chattr +a
        return False
    return True


def lines_backwards(path: str, most: int) -> Iterator[bytes]:
    """The lines of a file from its end, without newlines; of its last `most` bytes. No lines if it cannot be read."""
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
