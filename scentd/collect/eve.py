"""Suricata's alerts: EVE JSON lines on a unix stream socket (listen.py), to security events.

Suricata side: outputs: - eve-log: {filetype: unix_stream, filename: <socket>, types: [alert]}
(Suricata user guide, "Eve JSON Output").
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Literal

import msgspec

from scentd.collect.listen import LineListener
from scentd.collect.source import Reader, Setting
from scentd.config.schema import check_positive
from scentd.config.sections import Share, Source
from scentd.config.units import Seconds
from scentd.model import SecurityEvent
from scentd.prefix import Prefix

MAX_HELD = 1024  # events; a more severe event beyond it replaces the oldest of the mildest

# alert.severity is the rule's priority (1 is the most severe; classification.config gives 1 to 4).
SEVERITIES = {1: 1.0, 2: 0.7, 3: 0.4}
MILDEST = 0.2
MILDER = {1.0: 0.7, 0.7: 0.4}  # of what the sensor has blocked; any other: MILDEST

# The category of Suricata's own rules about packets and streams that its decoder takes for odd (classtype
# protocol-command-decode). A scent is an option that it does not know, so each scented packet is an alert.
DECODER = "generic protocol command decode"

# Words of classification.config's descriptions, most specific first; a description without any is an intrusion.
KINDS = (
    (
        "malware",
        ("malware", "trojan", "ransom", "exploit kit", "crypto currency", "coin mining", "command and control"),
    ),
    ("policy", ("policy", "privacy", "inappropriate", "social engineering", "credential theft", "unwanted program")),
    ("anomaly", ("protocol", "unusual", "not suspicious", "misc activity", "unknown traffic", "denial of service")),
)


class EveSource(Source, tag_field="kind", tag="eve"):
    """Suricata EVE lines of type alert on a unix socket that scentd listens on."""

    socket: str
    hold: Seconds = 60.0  # how long one event keeps the threat level up
    alarm: Share = 0.5  # an event at least this severe makes a new epoch at once
    affected: Literal["either", "source"] = "either"  # the end in the network, or only if it is the source
    decoder: bool = False  # alerts of Suricata's decoder count, too

    reports_events = True

    def mistakes(self, path: str) -> list[str]:
        return check_positive(self, path, "hold")

    def claim(self) -> str:
        return self.socket

    def events_node(self) -> str:
        return "" if self.affected == "source" else self.node  # who was only aimed at must not be named


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
Held = OrderedDict[tuple[str, str], tuple[SecurityEvent, float]]  # by kind and node
COUNTERS = (
    "eve_lines",
    "eve_alerts",
    "eve_not_ours",  # neither end is the network's
    "eve_decoder",  # of the decoder, which do not count
    "eve_bad_json",
    "eve_not_utf8",
    "eve_wrong_type",
    "eve_dropped",  # more than MAX_HELD events
)
CONNECTIONS = {"too_long": "eve_too_long", "clients": "eve_clients", "refused": "eve_refused"}  # of listen.py


class EveReader(Reader):
    """Listens, and keeps the events that have not ended."""

    COUNTERS = (*COUNTERS, *CONNECTIONS.values())
    polled = False
    name = "eve"

    def __init__(self, source: EveSource, setting: Setting) -> None:
        self.alerts = Alerts(source, setting.own)
        self._alarm = source.alarm
        self._on_alarm = setting.on_alarm
        self._listener = LineListener(source.socket, self.take)

    async def start(self) -> None:
        await self._listener.start()

    async def close(self) -> None:
        await self._listener.close()

    def adopt(self, old: Reader) -> None:
        assert isinstance(old, EveReader)  # of the same claim
        self.alerts.adopt(old.alerts)

    def take(self, line: bytes) -> None:
        event = self.alerts.line(line, time.time(), time.monotonic())
        if event is not None and event.severity >= self._alarm:
            self._on_alarm(event)

    def events(self, now: float, monotonic: float) -> list[SecurityEvent]:
        return self.alerts.active(now, monotonic)

    def counts(self) -> Mapping[str, int]:
        connections = {name: self._listener.counters[of] for of, name in CONNECTIONS.items()}
        return {**self.alerts.counters, **connections}


class Alerts:
    """The events of one socket that still count, one for each kind, node and severity.

    A mild alert that repeats must not keep up the severe one that came before it,
    so each severity has a time of its own. `at` of an event is when its line came,
    not the line's own timestamp: a sensor with a wrong clock cannot hold an alarm up.
    """

    def __init__(self, source: EveSource, own: Sequence[Prefix]) -> None:
        self._source = source
        self._own = own
        # Mildest first. Each holds (event, monotonic end) in the order of their ends, as all are held equally long.
        self._held: dict[float, Held] = {severity: OrderedDict() for severity in (MILDEST, 0.4, 0.7, 1.0)}
        self._lock = threading.Lock()  # the loop's thread adds lines, another thread calls active()
        self.counters = dict.fromkeys(COUNTERS, 0)

    def line(self, line: bytes, now: float, monotonic: float) -> SecurityEvent | None:
        """Take one line and return its event. None without an event, or if it only prolongs one that is held."""
        self.counters["eve_lines"] += 1
        record = self._record(line)
        if record is None or record.event_type != "alert":
            return None
        if record.alert is None or record.alert.severity < 1:
            self.counters["eve_wrong_type"] += 1
            return None
        if not self._source.decoder and (record.alert.category or "").strip().lower() == DECODER:
            self.counters["eve_decoder"] += 1
            return None
        node = affected(record, self._own, self._source.affected == "source")
        if node is None:
            self.counters["eve_not_ours"] += 1
            return None
        self.counters["eve_alerts"] += 1
        with self._lock:
            return self._hold(event(record.alert, node, now, self._source.hold), monotonic)

    def active(self, now: float, monotonic: float) -> list[SecurityEvent]:
        """Events that have ended by neither clock: a wall clock set back does not hold them up."""
        with self._lock:
            return [e for held in self._held.values() for e, end in held.values() if e.until > now and end > monotonic]

    def adopt(self, other: Alerts) -> None:
        """Take over the events that `other` holds."""
        with other._lock:
            copies = {severity: held.copy() for severity, held in other._held.items()}
        with self._lock:
            for severity, held in copies.items():
                held.update(self._held[severity])
                self._held[severity] = held

    def _record(self, line: bytes) -> Record | None:
        try:
            return RECORD.decode(line)
        except msgspec.ValidationError:
            self.counters["eve_wrong_type"] += 1
        except UnicodeDecodeError:
            self.counters["eve_not_utf8"] += 1
        except (msgspec.DecodeError, RecursionError):
            self.counters["eve_bad_json"] += 1
        return None

    def _hold(self, new: SecurityEvent, monotonic: float) -> SecurityEvent | None:
        held = self._held[new.severity]
        _, old_end = held.pop((new.kind, new.node), (None, monotonic))
        if not self._make_room(new.severity, monotonic):
            self.counters["eve_dropped"] += 1
            return None
        held[new.kind, new.node] = new, monotonic + self._source.hold
        return new if old_end <= monotonic else None

    def _make_room(self, severity: float, monotonic: float) -> bool:
        """Remove ended events, or else the oldest event milder than `severity`; whether there is room then."""
        for held in self._held.values():
            while held and next(iter(held.values()))[1] <= monotonic:
                held.popitem(last=False)
        if sum(map(len, self._held.values())) < MAX_HELD:
            return True
        for milder, held in self._held.items():
            if milder < severity and held:
                held.popitem(last=False)
                self.counters["eve_dropped"] += 1
                return True
        return False


def event(alert: Alert, node: str, now: float, hold: float) -> SecurityEvent:
    category, signature = alert.category or "", alert.signature or ""
    # repr: text from a packet must not break lines of our log.
    detail = repr(f"{category}: {signature}"[:200])
    severity = SEVERITIES.get(alert.severity, MILDEST)
    if alert.action == "blocked":  # tried, and kept out
        severity = MILDER.get(severity, MILDEST)
    return SecurityEvent(kind_of(category), severity, now, now + hold, node, detail)


def kind_of(category: str) -> str:
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
