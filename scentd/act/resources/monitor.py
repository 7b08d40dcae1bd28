"""More monitoring of a peer while its amount is 1: its packets are counted by prefix, written into captures, copied to
another interface.

Sets in the kernel say who is monitored (monitor_table.py); a process writes the captures (pcap_ring.py); tc filters
copy (mirror.py). What is on only in part, because the process has ended for instance, is reported as HALF.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from scentd.act.resources import mirror, monitor_table
from scentd.act.resources.backend import Backend, BackendSetting, Refused
from scentd.act.resources.mirror import GROUP_MAX, Mirror
from scentd.act.resources.monitor_table import TableState
from scentd.act.resources.pcap_writer import PcapWriter
from scentd.config.resource import Resource
from scentd.config.schema import check_positive
from scentd.config.units import Seconds
from scentd.prefix import Prefix, first_owners
from scentd.system import nft
from scentd.system.nft import Nftables

HALF = 0.5
RECENT = 0.1  # seconds


class MonitorResource(Resource, tag_field="kind", tag="monitor", kw_only=True):
    """1: the peer is monitored more; 0: as everybody."""

    stricter: ClassVar[Literal["less", "more"]] = "more"

    maximum: float = 1.0
    on_exit: Literal["keep", "give-back"] = "give-back"
    mirror_to: str = ""  # the interface that gets copies of frames; default: none
    interfaces: list[str] = []  # whose frames are copied
    pcap_directory: str = ""  # where captures go; default: none are written
    pcap_files: Annotated[int, Meta(ge=2, le=1000)] = 10
    pcap_file_size: Annotated[int, Meta(ge=100_000, le=10_000_000_000)] = 10_000_000  # bytes
    snaplen: Annotated[int, Meta(ge=64, le=65535)] = 65535  # bytes of each packet that are written
    group: Annotated[int, Meta(ge=1, le=GROUP_MAX)] = 5911  # of NFLOG: one that no other program reads
    start_timeout: Seconds = 10.0  # for the process that writes

    def mistakes(self, path: str) -> list[str]:
        problems = [*super().mistakes(path), *check_positive(self, path, "start_timeout")]
        if self.maximum > 1:
            problems.append(f"{path}.maximum: is above 1; monitoring is on (1) or off (0)")
        if bool(self.mirror_to) != bool(self.interfaces):
            problems.append(f"{path}.mirror_to: goes with {path}.interfaces; write both or none")
        if self.mirror_to in self.interfaces and self.mirror_to:
            problems.append(f"{path}.interfaces: {self.mirror_to} would copy its own copies; leave it out")
        for field, names in (("mirror_to", [self.mirror_to]), ("interfaces", self.interfaces)):
            if any(len(name) > 15 or any(c.isspace() or c in '/:"' for c in name) for name in names):
                problems.append(f"{path}.{field}: is no interface's name; write one as in `ip link`")
        if self.pcap_directory and not Path(self.pcap_directory).is_absolute():
            problems.append(f"{path}.pcap_directory: write it from the root on, such as /var/lib/scentd/captures")
        return problems


class MonitorBackend(Backend[MonitorResource]):
    section = MonitorResource

    def __init__(self, resource: MonitorResource, setting: BackendSetting) -> None:
        super().__init__(resource, setting)
        self._table = f"{monitor_table.NAME}{resource.group}"
        self._own = {peer: frozenset(own) for peer, own in first_owners(setting.peers).items() if own}
        self._known = frozenset(prefix for own in self._own.values() for prefix in own)
        log = f"log group {resource.group} snaplen {resource.snaplen} queue-threshold {monitor_table.LOG_TOGETHER}"
        lengths = monitor_table.lengths_of(self._known)
        self._text, self._mark, self._rules = monitor_table.table(
            self._table, lengths, log if resource.pcap_directory else ""
        )
        self._nft: Nftables | None = None
        self._counted: Mapping[Prefix, tuple[int, int]] = {}
        self._mirror: Mirror | None = None
        if resource.mirror_to:
            self._mirror = Mirror(resource.interfaces, resource.mirror_to, resource.group, self._known)
        self._seen = TableState((), {})
        self._seen_at = -math.inf
        self._generation = -1
        self._monitored: frozenset[Prefix] = frozenset()
        self._writer: PcapWriter | None = None
        if resource.pcap_directory:
            ring = (resource.pcap_directory, resource.name, resource.pcap_files, resource.pcap_file_size)
            arguments = (resource.group, resource.snaplen, *ring)
            self._writer = PcapWriter(resource.name, arguments, resource.start_timeout, self.wait)

    def observe(self) -> Mapping[str, float]:
        self._seen_at = -math.inf
        state = self._recent()
        counted = state.counts.keys()
        copied = set(counted) if self._mirror is None else self._mirror.copied(self._known)
        works = self._is_whole(state) and (self._writer is None or self._writer.runs())
        amounts = {}
        for peer, own in self._own.items():
            some = not own.isdisjoint(counted) or not own.isdisjoint(copied)
            amounts[peer] = 1.0 if works and own <= counted and own <= copied else HALF * some
        return amounts

    def change(self, peer: str, amount: float) -> None:
        if peer not in self._own:
            raise Refused(
                f"resource {self.resource.name}: peer {peer} has no addresses of its own; give it [[peer]].addresses "
                "that no peer before it has, or name other peers in the resource"
            )
        state = self._recent()
        own = self._own[peer]
        monitored = self._monitored | own if amount >= 1 else self._monitored - own
        if monitored and self._writer is not None:
            self._writer.start()
        if self._mirror is not None:
            self._mirror.copy(monitored, own)
        if monitored:
            self._set_table(state, monitored, own)
        else:
            self._stop()

    def _set_table(self, state: TableState, monitored: frozenset[Prefix], own: frozenset[Prefix]) -> None:
        """Bring the table there; anew if its rules are not as they should be, or it has what nobody knows."""
        there = state.counts
        if self._is_whole(state) and len(there) == len(self._monitored):
            new = [prefix for prefix in own if prefix in monitored and prefix not in there]
            ended = [prefix for prefix in own if prefix not in monitored and prefix in there]
            commands = [
                *monitor_table.element_text("add", self._table, new),
                *monitor_table.element_text("delete", self._table, ended),
            ]
            counts = {**there, **dict.fromkeys(new, (0, 0))}
            for prefix in ended:
                del counts[prefix]
        else:
            self.setting.tally.add(f"{self.resource.name}_built")
            commands = [monitor_table.replacement(self._table, self._text, monitored)]
            counts = dict.fromkeys(monitored, (0, 0))
        if commands:
            self._library().run_text("\n".join(commands))
        marks = [self._mark] * self._rules
        self._seen = TableState(marks, counts)
        self._monitored = monitored
        # One transaction raises the number by one; if somebody else has changed something, the table is read again.
        self._generation += bool(commands)

    def _recent(self) -> TableState:
        """The table as it was a moment ago, or as it is: a burst of changes does not read it each time."""
        if time.monotonic() - self._seen_at < RECENT and nft.generation() == self._generation:
            return self._seen
        self._generation = nft.generation()
        self._seen = monitor_table.read(self._library().table(self._table, monitor_table.FAMILY))
        self._seen_at = time.monotonic()
        self._monitored = self._known & self._seen.counts.keys()
        self._count(self._seen.counts)
        return self._seen

    def _is_whole(self, state: TableState) -> bool:
        return list(state.marks) == [self._mark] * self._rules

    def _library(self) -> Nftables:
        self._nft = self._nft or Nftables()
        return self._nft

    def _count(self, counts: Mapping[Prefix, tuple[int, int]]) -> None:
        """Add what the kernel has counted since the last time; a counter that is less than before is a new one."""
        for number, what in enumerate(("packets", "bytes")):
            total = 0
            for prefix, count in counts.items():
                before = self._counted.get(prefix, (0, 0))[number]
                total += count[number] - (before if before <= count[number] else 0)
            self.setting.tally.add(f"{self.resource.name}_{what}", total)
        self._counted = dict(counts)

    def _stop(self) -> None:
        """Nobody is monitored: remove the rules, end the process. Captures stay."""
        self._seen_at = -math.inf
        delete_tables(self._library(), [self._table])
        if self._writer is not None:
            self._writer.stop()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.stop()
        if self._nft is not None:
            self._nft.close()
            self._nft = None

    @classmethod
    def remove_all(cls) -> list[str]:
        copies = mirror.remove_all()
        if not nft.available():
            return copies
        with closing(Nftables()) as library:
            ours = [
                name
                for family, name in library.tables()
                if family == monitor_table.FAMILY and name.startswith(monitor_table.NAME)
            ]
            delete_tables(library, ours)
        return copies + [f"nftables table {monitor_table.FAMILY} {name}" for name in ours]

    @classmethod
    def sweep(cls, resources: Sequence[Resource]) -> list[str]:
        return [] if any(isinstance(r, MonitorResource) for r in resources) else cls.remove_all()

    @classmethod
    def notes(cls, resources: Sequence[MonitorResource]) -> list[str]:
        there = {name for _, name in socket.if_nameindex()}
        found = [
            f"resource {r.name}: interface {name} is not there now; until it is, nobody is monitored more"
            for r in resources
            for name in (r.mirror_to, *r.interfaces)
            if name and name not in there
        ]
        groups: dict[int, str] = {}
        for r in resources:
            first = groups.setdefault(r.group, r.name)
            if first != r.name:
                found.append(f"resource {r.name}: has the group of {first}; each would undo the other: write another")
        return found


def delete_tables(library: Nftables, names: Sequence[str]) -> None:
    """Somebody else may do so at the same time: add and delete in one transaction cannot fail."""
    if names:
        library.run_text(
            "\n".join(f"{verb} table {monitor_table.FAMILY} {name}" for name in names for verb in ("add", "delete"))
        )
