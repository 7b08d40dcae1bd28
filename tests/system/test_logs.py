"""Log lines on standard error, as the journal and as people read them."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = """
import logging
from scentd.system import logs
logs.setup("info")
log = logging.getLogger("who")
log.debug("not this")
log.info("said")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed")
"""


def lines(journal: bool) -> list[str]:
    """What a process writes into a pipe; `journal`: its environment says that the journal reads that."""
    reading, writing = os.pipe()
    status = os.fstat(writing)
    stream = f"{status.st_dev}:{status.st_ino}" if journal else "1:2"
    with os.fdopen(reading) as end:
        subprocess.run(
            [sys.executable, "-c", CODE], stderr=writing, env={**os.environ, "JOURNAL_STREAM": stream}, check=True
        )
        os.close(writing)
        return end.read().splitlines()


def test_people_see_the_level():
    said = lines(journal=False)
    assert said[:2] == ["I who: said", "E who: failed"]
    assert said[-1] == "ZeroDivisionError: division by zero"


def test_the_journal_gets_a_priority_with_each_line():
    said = lines(journal=True)
    assert said[:2] == ["<6>who: said", "<3>who: failed"]
    assert {line[:3] for line in said[1:]} == {"<3>"}
