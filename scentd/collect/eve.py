"""Suricata's alerts: EVE JSON lines on a unix stream socket (listen.py) or in a file (tail.py), to security events.

Suricata side: outputs: - eve-log: {filetype: unix_stream, filename: <socket>, types: [alert]}
or {filetype: regular, filename: <file>} (Suricata user guide, "Eve JSON Output").
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from ipaddress import ip_address
from typing import Literal

import msgspec

from scentd.collect.event_reader import EventSource, LogReader
from scentd.collect.listen import LineListener
from scentd.collect.source import Setting
from scentd.collect.tail import LogTail
from scentd.model import EventKind, SecurityEvent
from scentd.prefix import Prefix

# alert.severity is the rule's priority (1 is the most severe; classification.config gives 1 to 4).
SEVERITIES = {1: 1.0, 2: 0.7, 3: 0.4}
MILDEST = 0.2
MILDER = {1.0: 0.7, 0.7: 0.4}  # of what the sensor has blocked; any other: MILDEST

# The category of Suricata's own rules about packets and streams that its decoder takes for odd (classtype
# protocol-command-decode). A scent is an option that it does not know, so each scented packet is an alert.
DECODER = "generic protocol command decode"

# Words of classification.config's descriptions, most specific first; a description without any is an intrusion.
KINDS: tuple[tuple[EventKind, tuple[str, ...]], ...] = (
    (
        "malware",
        ("malware", "trojan", "ransom", "exploit kit", "crypto currency", "coin mining", "command and control"),
    ),
    ("policy", ("policy", "privacy", "inappropriate", "social engineering", "credential theft", "unwanted program")),
    ("anomaly", ("protocol", "unusual", "not suspicious", "misc activity", "unknown traffic", "denial of service")),
)


class EveSource(EventSource, tag_field="kind", tag="eve"):
    """Suricata EVE lines of type alert on a unix socket that scentd listens on, or in a file."""

    socket: str = ""
    file: str = ""
    affected: Literal["either", "source"] = "either"  # the end in the network, or only if it is the source
    decoder: bool = False  # alerts of Suricata's decoder count, too

    def mistakes(self, path: str) -> list[str]:
        problems = super().mistakes(path)
        if bool(self.socket) == bool(self.file):
            problems.append(f"{path}.socket: write either this, where scentd listens, or {path}.file, which it reads")
        return problems

    def claim(self) -> str:
        return self.socket

    def events_node(self) -> str:
        return "" if self.affected == "source" else self.node  # who was only aimed at must not be named

    def same(self) -> str:
        return self.socket or self.file


class Alert(msgspec.Struct):
    action: str | None = ""
    severity: int = 3
    category: str | None = ""
    signature: str | None = ""


class Record(msgspec.Struct):
    """The fields of an EVE record that matter here; all others are skipped unread."""

    event_type: str = ""
    src_ip: str | None = None
    dest_ip: str | None = None
    alert: Alert | None = None


RECORD = msgspec.json.Decoder(Record)
COUNTERS = (
    "lines",
    "alerts",
    "not_ours",  # neither end is the network's
    "decoder",  # of the decoder, which do not count
    "bad_json",
    "not_utf8",
    "wrong_type",
)


class EveReader(LogReader):
    """Listens or reads, and holds the events that have not ended."""

    COUNTERS = tuple(f"eve_{of}" for of in (*COUNTERS, "summed", "too_long", "clients", "refused"))

    def __init__(self, source: EveSource, setting: Setting) -> None:
        make_input = partial(LineListener, source.socket) if source.socket else partial(LogTail, source.file)
        super().__init__("eve", source, setting, Alerts(source, setting.own), make_input)


class Alerts:
    """What the lines of an EVE log tell.

    `at` of an event is when its line came, not the line's own timestamp: a sensor with a wrong clock cannot hold an
    alarm up.
    """

    def __init__(self, source: EveSource, own: Sequence[Prefix]) -> None:
        self._source = source
        self._own = own
        self.counters = dict.fromkeys(COUNTERS, 0)

    def event(self, line: bytes, now: float, monotonic: float = 0.0) -> SecurityEvent | None:
        """The event of one line; None if it is no alert that counts."""
        self.counters["lines"] += 1
        record = self._record(line)
        if record is None or record.event_type != "alert":
            return None
        if record.alert is None or record.alert.severity < 1:
            self.counters["wrong_type"] += 1
            return None
        if not self._source.decoder and (record.alert.category or "").strip().lower() == DECODER:
            self.counters["decoder"] += 1
            return None
        node = affected(record, self._own, self._source.affected == "source")
        if node is None:
            self.counters["not_ours"] += 1
            return None
        self.counters["alerts"] += 1
        return event(record.alert, node, now, self._source.hold)

    def _record(self, line: bytes) -> Record | None:
        try:
            return RECORD.decode(line)
        except msgspec.ValidationError:
            self.counters["wrong_type"] += 1
        except UnicodeDecodeError:
            self.counters["not_utf8"] += 1
        except (msgspec.DecodeError, RecursionError):
            self.counters["bad_json"] += 1
        return None


def event(alert: Alert, node: str, now: float, hold: float) -> SecurityEvent:
    category, signature = alert.category or "", alert.signature or ""
    # repr: text from a packet must not break lines of our log.
    detail = repr(f"{category}: {signature}"[:200])
    severity = SEVERITIES.get(alert.severity, MILDEST)
    if alert.action == "blocked":  # tried, and kept out
        severity = MILDER.get(severity, MILDEST)
    return SecurityEvent(kind_of(category), severity, now, now + hold, node, detail)


def kind_of(category: str) -> EventKind:
    """One of intrusion, malware, policy, anomaly."""
    text = category.lower()
    return next((kind for kind, words in KINDS if any(word in text for word in words)), "intrusion")


def affected(record: Record, own: Sequence[Prefix], senders_only: bool = False) -> str | None:
    """Address of the affected node, "" if the record names none, None if neither end is `own`.

    With `senders_only` a node is affected only if it sent the packet of the alert. An alert about
    a packet to a node then names no node, so that a stranger who triggers rules about a node
    cannot have it quarantined.

    Otherwise the destination comes first: it is the attacked end in most rules. If a node
    of ours talks outwards, it is the only own end.
    """
    if senders_only:
        if record.src_ip and (not own or is_own(record.src_ip, own)):
            return record.src_ip
        return None if affected(record, own) is None else ""
    if not own:
        return record.dest_ip or ""
    ends = [end for end in (record.dest_ip, record.src_ip) if end]
    if not ends:
        return ""
    return next((end for end in ends if is_own(end, own)), None)


def is_own(text: str, own: Sequence[Prefix]) -> bool:
    try:
        address = ip_address(text)
    except ValueError:
        return False
    return any(address in prefix for prefix in own)
