"""The end of a log file, a line at a time, across rotation: for sources whose sensor writes a file.

A thread waits for inotify(7) and reads, so a file system that hangs or a flood of lines stops nobody else. What was
in the file before the start is not read. inotify only wakes: each look compares the file with its name, so an event
that does not come (a network file system, no watches left) costs a second and nothing else.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import select
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from inotify_simple import INotify, flags

from scentd.collect.lines import Input, Lines

LOOK = 1.0  # seconds between two looks at least
CHUNK = 256 * 1024  # bytes
PAUSE = 0.01  # seconds between two whole chunks: a flood of lines leaves the other threads their time
GRACE = 10.0  # seconds for which a rotated file is read on: its writer may not know yet

HINTS = {
    errno.ENOENT: "no file has this name; does its writer run, and is this the path that it writes?",
    errno.EACCES: "permission denied; the unit needs the group that may read it: SupplementaryGroups=, e.g. adm",
}

log = logging.getLogger(__name__)


FileId = tuple[int, int]  # device and inode


class Position(NamedTuple):
    """How far a file was read: up to the beginning of a line, or (skipping) inside one that does not count."""

    file: FileId
    offset: int
    skipping: bool


class OpenFile:
    """One file, read from a position on."""

    def __init__(self, descriptor: int, offset: int, skipping: bool = False) -> None:
        self.descriptor = descriptor
        self.id = id_of(os.fstat(descriptor))
        self.position = Position(self.id, offset, skipping)  # in one piece, for another thread
        self._offset = offset
        self._lines = Lines(skipping)

    def read(self) -> tuple[list[bytes], bool]:
        """Lines of the next chunk, and whether it was a whole one. Raises OSError."""
        data = os.pread(self.descriptor, CHUNK, self._offset)
        self._offset += len(data)
        # A program that does not append leaves a hole when its log is truncated under it.
        lines = self._lines.feed(data.replace(b"\0", b""))
        self.position = Position(self.id, self._offset - self._lines.held, self._lines.skipping)
        return lines, len(data) == CHUNK

    def take_too_long(self) -> int:
        """How many lines were too long since the last call."""
        count, self._lines.too_long = self._lines.too_long, 0
        return count

    def begin_again_if_shrunk(self) -> bool:
        """Whether it has been truncated; then it is read from its beginning. Raises OSError."""
        if os.fstat(self.descriptor).st_size >= self._offset:
            return False
        self._offset, self._lines = 0, Lines()
        return True

    def close(self) -> None:
        os.close(self.descriptor)


class LogFile:
    """A log by its path, whichever file has that name. Not found or not readable is its `problem`, and may pass."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.problem = ""
        self.counters = dict.fromkeys(("too_long", "rotated", "truncated", "unreadable"), 0)
        self.current: OpenFile | None = None
        self._begin: Position | None = None  # where to begin, if the first file that can be opened is this one
        self._before: OpenFile | None = None  # the one that was rotated last
        self._before_until = 0.0
        self._looked = False

    def open(self, begin: Position | None = None) -> None:
        """Open the file without reading: what is in it is old, but for what stands behind `begin`."""
        self._begin = begin
        try:
            self._follow_name(0.0)
        except OSError as error:
            self._fail(error)

    def read(self, monotonic: float) -> tuple[list[bytes], bool]:
        """Lines that were written since the last call, and whether there is more to read at once."""
        lines: list[bytes] = []
        more = self._read_before(lines, monotonic)
        try:
            more |= self._read_current(lines) or self._follow_name(monotonic)
        except OSError as error:
            self._fail(error)
        return lines, more

    def close(self) -> None:
        for file in (self.current, self._before):
            if file is not None:
                file.close()
        self.current = self._before = None

    def _read_before(self, lines: list[bytes], monotonic: float) -> bool:
        if self._before is None:
            return False
        more = False
        with suppress(OSError):
            more = self._read(self._before, lines)
        if not more and monotonic > self._before_until:
            self._before.close()
            self._before = None
        return more

    def _read_current(self, lines: list[bytes]) -> bool:
        if self.current is None:
            return False
        try:
            if self._read(self.current, lines):
                return True
            truncated = self.current.begin_again_if_shrunk()
        except OSError:  # a server's file, for instance, that is not there any more
            self._begin = self.current.position
            self.current.close()
            self.current = None
            raise
        self.counters["truncated"] += truncated
        return truncated

    def _read(self, file: OpenFile, lines: list[bytes]) -> bool:
        new, more = file.read()
        lines += new
        self.counters["too_long"] += file.take_too_long()
        return more

    def _follow_name(self, monotonic: float) -> bool:
        """Whether another file has the name now; it is open then. Raises OSError."""
        status = os.stat(self.path)
        named = id_of(status)
        if not self._looked and self._begin is None:
            self._begin = Position(named, status.st_size, True)
        self._looked = True
        if self.current is not None and self.current.id == named:
            self.problem = ""
            return False
        file = self._open()
        if self.current is not None:
            self.counters["rotated"] += 1
            if self._before is not None:
                self._before.close()
            self._before, self._before_until = self.current, monotonic + GRACE
        self.current, self.problem, self._begin = file, "", None
        return True

    def _open(self) -> OpenFile:
        # Not to wait for a FIFO's writer, and not to take a terminal.
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            begin = self._begin
            if begin is None or begin.file != id_of(status) or begin.offset > status.st_size:
                return OpenFile(descriptor, 0)
            # A line that stands there half is old, too.
            whole = begin.offset == 0 or os.pread(descriptor, 1, begin.offset - 1) == b"\n"
            return OpenFile(descriptor, begin.offset, begin.skipping and not whole)
        except BaseException:
            os.close(descriptor)
            raise

    def _fail(self, error: OSError) -> None:
        if isinstance(error, FileNotFoundError):
            self._looked = True  # what gets the name from now on is new
        self.counters["unreadable"] += not self.problem
        self.problem = f"{self.path}: {HINTS.get(error.errno or 0, error.strerror)}"


class LogTail(Input):
    """A LogFile with the thread that reads it. `take` gets each line, on that thread."""

    def __init__(self, path: str, take: Callable[[bytes], None]) -> None:
        self._file = LogFile(path)
        self.counters = self._file.counters
        self._take = take
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()
        self._wake = -1
        self._begin: Position | None = None

    @property
    def problem(self) -> str:
        return self._file.problem

    async def start(self) -> None:
        """Read what is written from now on. A file that cannot be read is no error here: see `problem`."""
        await asyncio.to_thread(self._file.open, self._begin)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="collect-tail", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Stop. Does not wait for a file system that hangs. May be called twice."""
        if self._thread is not None and not self._ending.is_set():
            self._ending.set()
            os.eventfd_write(self._wake, 1)
            await asyncio.to_thread(self._thread.join, LOOK)

    def adopt(self, old: Input) -> None:
        """Go on where `old` has read to, if it read the same file."""
        assert isinstance(old, LogTail)
        current = old._file.current  # its thread may close it meanwhile
        self._begin = current.position if current is not None else None

    def _run(self) -> None:
        watch = FileWatch(self._file.path)
        try:
            while not self._ending.is_set():
                if self._read_once():
                    self._ending.wait(PAUSE)
                elif not watch.follow(self._file.current):  # else something may have happened before that
                    watch.wait(self._wake, LOOK)
        finally:
            watch.close()
            self._file.close()
            os.close(self._wake)

    def _read_once(self) -> bool:
        """Whether there is more to read at once."""
        lines, more = self._file.read(time.monotonic())
        for line in lines:
            try:
                self._take(line)
            except Exception:  # a defect: log it, and go on with the next line
                log.exception("%s: a line could not be read; please report it", self._file.path)
        return more


class FileWatch:
    """inotify for a log: the file that is open, and its directory, where another may get its name."""

    def __init__(self, path: str) -> None:
        self._directory = os.path.dirname(path) or "."
        self._directory_watch = -1
        self._file_watches: list[int] = []  # of the newest file and the one before
        self._notify: INotify | None = None
        try:
            self._notify = INotify(nonblocking=True)
        except OSError as error:  # fs.inotify.max_user_instances
            log.warning("%s: no inotify (%s): new lines are seen within %.0f s", path, error.strerror, LOOK)

    def follow(self, file: OpenFile | None) -> bool:
        """Watch this file, too, and the directory, which may have been made only now. Whether one was not watched."""
        if self._notify is None:
            return False
        new = False
        with suppress(OSError):  # it is not there, or there are no watches left: then the looks have to do
            before = self._directory_watch  # one that is watched already gets the same number
            self._directory_watch = self._notify.add_watch(self._directory, flags.CREATE | flags.MOVED_TO)
            new = self._directory_watch != before
            if file is not None:
                number = self._notify.add_watch(f"/proc/self/fd/{file.descriptor}", flags.MODIFY)
                if number not in self._file_watches:
                    self._file_watches.append(number)
                    new = True
        if len(self._file_watches) > 2:
            with suppress(OSError):  # the file was deleted
                self._notify.rm_watch(self._file_watches.pop(0))
        return new

    def wait(self, wake: int, seconds: float) -> None:
        """Until something has happened, or `wake` is written to, or the time is over."""
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        if self._notify is not None:
            poll.register(self._notify.fileno(), select.POLLIN)
        poll.poll(seconds * 1000)
        if self._notify is not None:
            self._notify.read(timeout=0)  # which event it was does not matter

    def close(self) -> None:
        if self._notify is not None:
            self._notify.close()


def id_of(status: os.stat_result) -> FileId:
    return status.st_dev, status.st_ino
