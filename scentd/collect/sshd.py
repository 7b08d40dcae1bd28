"""Failed logins at sshd, from the journal (journal.py) or its log file (tail.py), to security events.

Whoever knocks chooses the user name that the log shows. So a line is taken only from its first byte to its last, the
address is the last one of the line, and of a line that sshd may have cut off (at 1023 bytes: MSGBUFSIZ in its log.c)
no address is believed. Today's sshd cuts user names off long before, at 100 characters.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import Sequence
from functools import partial
from ipaddress import ip_address, ip_network
from typing import Annotated

from msgspec import Meta

from scentd.collect.event_reader import EventSource, LogReader
from scentd.collect.journal import Journal
from scentd.collect.source import Setting
from scentd.collect.tail import LogTail
from scentd.config.schema import check_positive
from scentd.config.units import Seconds
from scentd.model import SecurityEvent
from scentd.prefix import Address, Prefix

# Severity by the failures in `within`, as multiples of `failures`; and of a login that succeeds after so many.
BEGINNING, MANY, TIMES_MANY = 0.5, 0.7, 10
GUESSED = 1.0

MAX_KEPT = 1024  # addresses whose failures are kept, and connections that have had one
CUT_OFF = 1000  # bytes; sshd writes some bytes as four, and cuts off between them
MATCHES = ("_UID=0", "_COMM=sshd", "_COMM=sshd-session")  # journald's own word; a tag could be anybody's

# A line of syslog, by its old or its new date; `sshd -E` writes messages alone.
PREFIX = rb"(?:(?:[A-Z][a-z]{2} [ \d]\d [\d:]{8}|\d{4}-\d\d-\d\dT\S{1,30}) \S{1,255} sshd(?:-session)?\[\d{1,10}\]: )?"
REPEATED = re.compile(PREFIX + rb"message repeated (\d{1,9}) times: \[ (.*)\]")
MESSAGE = re.compile(PREFIX + rb"(.*)")
GUESS = rb"(?:password|keyboard-interactive/\S{1,30})"  # "none" asks for the methods; of keys a client may try many
END = rb"(\S{1,60}) port (\d{1,5})"
FAILED = re.compile(rb"Failed " + GUESS + rb" for .* from " + END + rb" ssh2")
LEFT = re.compile(
    rb"(?:Connection (?:closed|reset) by|Disconnected from|Disconnecting) (?:authenticating|invalid) user .* "
    + END
    + rb"(?:: Too many authentication failures)? \[preauth\]"
)
ACCEPTED = re.compile(rb"Accepted " + GUESS + rb" for .* from " + END + rb" ssh2")


class SshdSource(EventSource, tag_field="kind", tag="sshd"):
    """Failed logins at this host's sshd, from the journal or from the file that syslog writes."""

    file: str = ""  # default: the journal
    failures: Annotated[int, Meta(ge=1, le=1000)] = 10  # so many ...
    within: Seconds = 60.0  # ... in so long are an event

    def mistakes(self, path: str) -> list[str]:
        return super().mistakes(path) + check_positive(self, path, "within")

    def same(self) -> str:
        return self.file or "journal"

    def events_node(self) -> str:
        return ""  # who was only aimed at must not be named


class SshdReader(LogReader):
    """Reads, and holds the events that have not ended."""

    def __init__(self, source: SshdSource, setting: Setting) -> None:
        make_input = partial(LogTail, source.file) if source.file else partial(Journal, MATCHES)
        super().__init__("sshd", source, setting, Logins(source, setting.own), make_input)


class Recent:
    """When things happened, by key; the keys that were seen last."""

    def __init__(self, most: int, within: float) -> None:
        """`most` times are kept of each key, `within` seconds long."""
        self._most = most
        self._within = within
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def add(self, key: str, monotonic: float, times: int = 1) -> None:
        known = self._times.setdefault(key, deque(maxlen=self._most))
        known.extend([monotonic] * min(times, self._most))
        self._times.move_to_end(key)
        if len(self._times) > MAX_KEPT:
            self._times.popitem(last=False)

    def count(self, key: str, monotonic: float) -> int:
        return sum(at > monotonic - self._within for at in self._times.get(key, ()))


class Logins:
    """What sshd's messages tell.

    A failure is a wrong password, or a connection that ended before any login succeeded or failed. Failures of
    senders in the network are the sender's event; all others are one of this host (no node), however many senders
    they have.
    """

    def __init__(self, source: SshdSource, own: Sequence[Prefix]) -> None:
        self._source = source
        self._own = own
        self._by_node = Recent(source.failures * TIMES_MANY, source.within)
        self._by_sender = Recent(source.failures, source.within)
        self._failed: OrderedDict[tuple[bytes, ...], bool] = OrderedDict()  # connections: address and port
        self.counters = dict.fromkeys(("lines", "failures", "guessed", "cut_off", "no_address"), 0)

    def event(self, line: bytes, now: float, monotonic: float) -> SecurityEvent | None:
        self.counters["lines"] += 1
        line, times = line.removesuffix(b"\r"), 1  # `sshd -E` ends its lines as a terminal's
        if repeated := REPEATED.fullmatch(line):
            times, message = int(repeated[1]), repeated[2]
        elif whole := MESSAGE.fullmatch(line):
            message = whole[1]
        else:
            return None
        if len(message) >= CUT_OFF:
            self.counters["cut_off"] += 1
            return self._failure(None, times, now, monotonic) if message.startswith(b"Failed ") else None
        if failed := FAILED.fullmatch(message):
            self._remember(failed.groups())
            return self._failure(self._sender(failed[1]), times, now, monotonic)
        if left := LEFT.fullmatch(message):
            if self._failed.pop(left.groups(), False):
                return None  # it has counted
            return self._failure(self._sender(left[1]), 1, now, monotonic)
        if accepted := ACCEPTED.fullmatch(message):
            return self._login(self._sender(accepted[1]), now, monotonic)
        return None

    def _failure(self, sender: Address | None, times: int, now: float, monotonic: float) -> SecurityEvent | None:
        self.counters["failures"] += times
        if sender is not None:
            self._by_sender.add(group_of(sender), monotonic, times)
        node = self._node(sender)
        self._by_node.add(node, monotonic, times)
        count = self._by_node.count(node, monotonic)
        if count < self._source.failures:
            return None
        severity = MANY if count >= self._source.failures * TIMES_MANY else BEGINNING
        return self._event(severity, node, f"{count} failed logins at sshd, the last of {sender or 'a long name'}", now)

    def _login(self, sender: Address | None, now: float, monotonic: float) -> SecurityEvent | None:
        """A password that was right after many that were wrong."""
        if sender is None or self._by_sender.count(group_of(sender), monotonic) < self._source.failures:
            return None
        self.counters["guessed"] += 1
        return self._event(GUESSED, self._node(sender), f"a login of {sender} at sshd after many that failed", now)

    def _event(self, severity: float, node: str, detail: str, now: float) -> SecurityEvent:
        return SecurityEvent("intrusion", severity, now, now + self._source.hold, node, detail)

    def _remember(self, connection: tuple[bytes, ...]) -> None:
        self._failed[connection] = True
        if len(self._failed) > MAX_KEPT:
            self._failed.popitem(last=False)

    def _sender(self, text: bytes) -> Address | None:
        try:
            return ip_address(text.decode("ascii"))
        except ValueError:  # a name, of an sshd that asks DNS; or not ASCII
            self.counters["no_address"] += 1
            return None

    def _node(self, sender: Address | None) -> str:
        own = sender is not None and any(sender in prefix for prefix in self._own)
        return str(sender) if own else ""


def group_of(sender: Address) -> str:
    """Who is taken for one: an address, or what one host gets of IPv6."""
    return str(ip_network((sender.packed, 64), strict=False)) if sender.version == 6 else str(sender)
