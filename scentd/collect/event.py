"""What `scentd event` reports by the control socket: security events of anything that has no source of its own."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address

from scentd.collect.event_reader import EventReader, EventSource
from scentd.collect.source import CollectError, Setting
from scentd.model import EventReport, SecurityEvent

COUNTERS = (
    "taken",
    "not_ours",  # refused: the node is not the network's
)


class ReportedSource(EventSource, tag_field="kind", tag="event"):
    """Lets the network take the events that `scentd event` reports."""

    def same(self) -> str:
        return "event"


class ReportedReader(EventReader):
    """Holds what was reported."""

    name = "event"

    def __init__(self, source: ReportedSource, setting: Setting) -> None:
        super().__init__(source, setting)
        self._hold = source.hold
        self._own = setting.own
        self._counters = dict.fromkeys(COUNTERS, 0)

    def report(self, said: EventReport, now: float) -> tuple[SecurityEvent, bool]:
        """Raises CollectError for a node that is not the network's."""
        until = now + (self._hold if said.hold is None else said.hold)
        event = SecurityEvent(said.kind, said.severity, now, until, self._node(said.node), repr(said.detail))
        self._counters["taken"] += 1
        return event, self.hold(event)

    def counts(self) -> Mapping[str, int]:
        return {**super().counts(), **{f"{self.name}_{of}": count for of, count in self._counters.items()}}

    def _node(self, text: str) -> str:
        """In the one way of writing it."""
        if not text:
            return ""
        try:
            node = ip_address(text)
        except ValueError:
            node = None
        if node is None or (self._own and not any(node in prefix for prefix in self._own)):
            self._counters["not_ours"] += 1
            own = ", ".join(map(str, self._own[:4])) or "of this host"
            raise CollectError(f"node {text!r}: write an address of the network ({own}), or leave the node out")
        return str(node)
