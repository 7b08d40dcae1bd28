"""What ClamAV finds, from the log file of clamd, clamonacc or clamscan (tail.py), to security events.

ClamAV side: LogFile in clamd.conf, or `clamscan --log=FILE` (clamd.conf(5), clamscan(1)).
"""

from __future__ import annotations

import re
from functools import partial

from scentd.collect.event_reader import EventSource, LogReader
from scentd.collect.source import Setting
from scentd.collect.tail import LogTail
from scentd.model import DETAIL_MAX, SecurityEvent

FOUND = 0.8
SUSPECTED = 0.4
# What is unwanted, or only looks like something, by the names that ClamAV gives (its manual, "PUA", "Heuristics").
SUSPICIOUS = (b"PUA.", b"Heuristics.")
# Path or client, signature, and with ExtendedDetectionInfo a digest. clamd's LogTime writes a date in front.
LINE = re.compile(rb"(.+): (\S{1,300}?)(?:\([0-9a-f]{1,64}:\d{1,20}\))? FOUND")


class ClamavSource(EventSource, tag_field="kind", tag="clamav"):
    """What ClamAV finds on this host, by its log file."""

    file: str = "/var/log/clamav/clamav.log"

    def same(self) -> str:
        return self.file


class ClamavReader(LogReader):
    """Reads, and holds the events that have not ended."""

    def __init__(self, source: ClamavSource, setting: Setting) -> None:
        super().__init__("clamav", source, setting, Findings(source), partial(LogTail, source.file))


class Findings:
    """What the lines of ClamAV's log tell. They name files and no addresses: all findings are this host's (no node)."""

    def __init__(self, source: ClamavSource) -> None:
        self._hold = source.hold
        self.counters = dict.fromkeys(("lines", "found", "suspected"), 0)

    def event(self, line: bytes, now: float, monotonic: float) -> SecurityEvent | None:
        self.counters["lines"] += 1
        found = LINE.fullmatch(line)
        if found is None:
            return None
        suspected = found[2].startswith(SUSPICIOUS)
        self.counters["suspected" if suspected else "found"] += 1
        severity = SUSPECTED if suspected else FOUND
        detail = repr(line[-DETAIL_MAX:].decode(errors="replace"))
        return SecurityEvent("malware", severity, now, now + self._hold, "", detail)
