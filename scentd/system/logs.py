"""Where log records go: lines on standard error, with their priority in front if the journal reads them (sd-daemon(3)).

So `journalctl -p warning -u scentd` shows warnings and worse, each line of a traceback among them.
"""

from __future__ import annotations

import logging
import os
import sys

PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
PLAIN = "%(levelname).1s %(name)s: %(message)s"
JOURNAL = "%(name)s: %(message)s"
STDERR = 2


class JournalFormatter(logging.Formatter):
    """Each line of a record begins with the priority that the journal gives it."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{PRIORITIES.get(record.levelno, 6)}>"
        return prefix + super().format(record).replace("\n", f"\n{prefix}")


def setup(level: str) -> None:
    """Send the records of this process to standard error, from this level on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JournalFormatter(JOURNAL) if is_journal(STDERR) else logging.Formatter(PLAIN))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def is_journal(fd: int) -> bool:
    """Whether the journal reads this descriptor: a child's may lead elsewhere, with the same environment."""
    status = os.fstat(fd)
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
