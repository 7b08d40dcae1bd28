"""Messages of systemd's journal, for sources whose program writes no file: journalctl(1) as a child of the daemon."""

from __future__ import annotations

import asyncio
import logging
import time
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from scentd.collect.lines import Input, Lines

RETRY = 5.0  # seconds
CHUNK = 64 * 1024  # bytes
MACHINE = Path("/etc/machine-id")
# --follow alone means this boot, whose id may be another one in a sandbox in a container than journald's; --merge means
# any boot, and machines whose journals are kept here, which a match leaves out (journalctl.c, as of systemd 252).
ARGV = ("journalctl", "--follow", "--merge", "--no-tail", "--quiet", "--output=json", "--output-fields=MESSAGE")

log = logging.getLogger(__name__)


class JournalEntry(msgspec.Struct):
    """An entry of `journalctl --output=json`. What is not UTF-8 comes as numbers, what is very long as null."""

    message: str | list[int] | None = msgspec.field(name="MESSAGE", default=None)


ENTRY = msgspec.json.Decoder(JournalEntry)


class Journal(Input):
    """Follows the entries that match (FIELD=VALUE of journalctl). `take` gets each message, on the loop's thread."""

    def __init__(self, matches: Sequence[str], take: Callable[[bytes], None]) -> None:
        self.counters = dict.fromkeys(("too_long", "bad_entry", "restarts"), 0)
        self._matches = matches
        self._take = take
        self._since = 0.0  # Unix time from which on nothing has been taken
        self._problem = ""
        self._said = ""  # journalctl's last words that are no entry
        self._task: asyncio.Task | None = None

    @property
    def problem(self) -> str:
        return self._problem

    async def start(self) -> None:
        """A journalctl that does not run is no error here: see `problem`."""
        self._since = time.time()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                await self._follow()
            except OSError as error:
                self._problem = f"{error.filename}: {error.strerror}; install systemd, or set the source's file"
            except Exception:  # a defect: log it, and go on with a new child
                log.exception("the journal's entries could not be read; please report it")
            self.counters["restarts"] += 1
            await asyncio.sleep(RETRY)

    async def _follow(self) -> None:
        """Until journalctl ends. Raises OSError if it cannot be started."""
        machine = f"_MACHINE_ID={MACHINE.read_text().strip()}"
        argv = (*ARGV, f"--since=@{self._since:.6f}", machine, *self._matches)
        process = await asyncio.create_subprocess_exec(*argv, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT)
        lives = asyncio.get_running_loop().call_later(RETRY, self._works)
        try:
            await self._read(process)
            self._since = time.time()
            said = self._said or "without a word"
            self._problem = f"journalctl ended ({await process.wait()}): {said}; or set the source's file"
        finally:
            lives.cancel()
            if process.returncode is None:
                process.terminate()
                await process.wait()

    async def _read(self, process: Process) -> None:
        assert process.stdout is not None
        lines = Lines()
        while data := await process.stdout.read(CHUNK):
            for line in lines.feed(data):
                self._entry(line)
            self.counters["too_long"] += lines.too_long
            lines.too_long = 0

    def _entry(self, line: bytes) -> None:
        try:
            message = ENTRY.decode(line).message
            text = message.encode() if isinstance(message, str) else bytes(message or ())
        except (msgspec.MsgspecError, ValueError):  # a number that is no byte is a ValueError
            self.counters["bad_entry"] += 1
            self._said = repr(line[:200].decode(errors="replace"))
            return
        self._works()
        self._take(text)

    def _works(self) -> None:
        self._problem = ""
