"""Bytes to lines, of a socket, a log file or a child's output."""

from __future__ import annotations

MAX_LINE = 64 * 1024  # bytes


class Input:
    """Where a log's lines come from: a socket (listen.py), a file (tail.py), the journal (journal.py)."""

    counters: dict[str, int]

    @property
    def problem(self) -> str:
        """Why nothing can come now, and the way out; "" if it can."""
        return ""

    async def start(self) -> None:
        """Give what comes from now on. Raises HostError for what does not mend itself."""

    async def close(self) -> None:
        """May be called twice."""

    def adopt(self, old: Input) -> None:
        """Go on where another input of this class and place has got to; before start()."""


class Lines:
    """A byte stream to lines. Holds at most MAX_LINE bytes; a longer line is skipped up to its newline."""

    def __init__(self, skipping: bool = False) -> None:
        """`skipping`: the stream begins inside a line, which does not count."""
        self.too_long = 0
        self.skipping = skipping
        self._tail = b""

    @property
    def held(self) -> int:
        """Bytes of a line that has not ended yet."""
        return len(self._tail)

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes, without their newlines; empty ones are left out."""
        lines = []
        *complete, tail = data.split(b"\n")
        for end in complete:
            line, self._tail = self._tail + end, b""
            if self.skipping:
                self.skipping = False
            elif len(line) > MAX_LINE:
                self.too_long += 1
            elif line.strip():
                lines.append(line)
        if not self.skipping and len(self._tail) + len(tail) > MAX_LINE:
            self.too_long += 1
            self._tail, self.skipping = b"", True
        elif not self.skipping:
            self._tail += tail
        return lines
