"""The replicas of one peer: looks at directories, slots and pool, and brings them to a number.

Whatever is there and does not serve counts as HALF: so the provider sees that something is to be mended, even if the
number of those that serve is right.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property

from scentd.act.resources.backend import Refused
from scentd.act.resources.haproxy import HaproxyPool, PoolServer
from scentd.act.resources.postgres_primary import PostgresServer, SlotState, connection_to, error_of
from scentd.act.resources.postgres_replica import ReplicaFiles, ReplicaHost
from scentd.act.resources.postgres_section import PostgresResource
from scentd.errors import HostError

HALF = 0.5
START_AGAIN = 1.0  # seconds: what a kill has left of the server before keeps its files locked for a moment
LOOK = 0.03  # seconds between two looks while something is waited for


@dataclass(frozen=True, slots=True)
class ReplicaWorld:
    """What there is, each by a replica's number."""

    files: Sequence[ReplicaFiles]
    slots: Mapping[int, SlotState]
    servers: Mapping[int, PoolServer]
    position: int  # bytes of the primary's log
    major: int  # the primary's version

    def sound(self) -> list[ReplicaFiles]:
        """The replicas with whole files and a slot, by number; of two with one number the first."""
        found: dict[int, ReplicaFiles] = {}
        for each in self.files:
            if each.whole and each.number in self.slots:
                found.setdefault(each.number, each)
        return list(found.values())

    def in_pool(self, replica: ReplicaFiles, address: str) -> bool:
        server = self.servers.get(replica.number)
        return server is not None and server.serves and (server.address, server.port) == (address, replica.port)


class LagWatch:
    """How late a replica is: how long ago the primary's log was first seen where the replica is not yet."""

    def __init__(self) -> None:
        self._marks: dict[int, tuple[int, float]] = {}

    def lag(self, number: int, position: int, replayed: int, now: float) -> float:
        """Seconds; `position` and `replayed` in bytes of the log, `now` monotonic."""
        mark = self._marks.get(number)
        if mark is None or replayed >= mark[0]:
            mark = self._marks[number] = (position, now)
        return 0.0 if replayed >= position else now - mark[1]


class PeerReplicas:
    """Replicas of one peer. `section` has no {peer} any more; `wait` as Backend.wait; `count` counts events."""

    def __init__(
        self, section: PostgresResource, wait: Callable[[float], None], count: Callable[[str, int], None]
    ) -> None:
        self._section, self._wait, self._count = section, wait, count
        key = hashlib.sha256(f"{section.name}/{section.peer}".encode()).hexdigest()[:8]
        readable = re.sub("[^a-z0-9]", "_", section.peer.lower())[:30]
        self._slot_prefix = f"scentd_{key}_{readable}_"  # [a-z0-9_], below the 63 characters of a slot's name
        self._host = ReplicaHost(section.directory, section.user, section.start, wait)
        self._pool = HaproxyPool(section.haproxy_socket, section.pool, section.server, section.connect_timeout)
        self._watch = LagWatch()

    # -- look -------------------------------------------------------------------

    def amount(self) -> float:
        """The replicas that serve, and HALF if there is something that does not. Raises HostError, Refused."""
        world = self._look()
        serving = [each for each in world.sound() if self._why_not(each, world) == ""]
        numbers = {each.number for each in serving}
        busy = {number for number, server in world.servers.items() if not server.idle}
        left = len(world.files) > len(serving) or not (world.slots.keys() | busy) <= numbers
        return len(serving) + HALF * left

    def _look(self) -> ReplicaWorld:
        servers = self._pool.servers()
        files = self._host.files()
        with self._primary() as primary:
            slots = primary.slots(self._slot_prefix)
            position, major = primary.position(), primary.major
        ours = {name.removeprefix(self._slot_prefix): state for name, state in slots.items()}
        numbered = {int(number): state for number, state in ours.items() if number.isdecimal()}
        return ReplicaWorld(files, numbered, servers, position, major)

    def _why_not(self, replica: ReplicaFiles, world: ReplicaWorld) -> str:
        """Why it does not serve; "" if it does."""
        if not world.slots[replica.number].streams:
            return "does not stream"
        if not world.in_pool(replica, self._section.address):
            return "is not in the pool"
        return self._why_late(replica, world.position)

    def _why_late(self, replica: ReplicaFiles, position: int) -> str:
        try:
            with self._server_of(replica) as server:
                replayed = server.replayed()
        except HostError as error:
            return str(error)
        if replayed is None:
            return "is no replica any more: somebody has promoted it"
        lag = self._watch.lag(replica.number, position, replayed, time.monotonic())
        return "" if lag <= self._section.max_lag else f"is {position - replayed} bytes late, for {lag:.1f} s"

    # -- change -----------------------------------------------------------------

    def bring(self, number: int) -> None:
        """Have so many replicas that serve, and nothing else. Raises HostError, Refused."""
        world = self._look()
        world = self._clean(world)
        sound = world.sound()
        self._retire(sound[number:][::-1], world)
        kept = sound[:number]
        for replica in kept:
            if self._why_not(replica, world):
                self._mend(replica, world)
        free = (n for n in range(1, number + 1 + len(kept)) if n not in {each.number for each in kept})
        for _ in range(number - len(kept)):
            self._add(next(free), world.major)

    def _clean(self, world: ReplicaWorld) -> ReplicaWorld:
        """Remove what a kill or somebody has left: half backups, files without a slot, slots without files, servers."""
        sound = world.sound()
        numbers = {each.number for each in sound}
        lost = [each for each in world.files if each not in sound]
        slots, busy = world.slots.keys() - numbers, [n for n, server in world.servers.items() if not server.idle]
        for number in sorted({*busy} - numbers):
            self._pool.leave(number)
        for each in lost:
            self._stop(each, world.major)
            self._host.remove(each.path)
        for number in sorted(slots):
            self._drop(number)
        self._count("cleaned", len(lost) + len(slots))
        return self._look() if lost or slots else world

    def _retire(self, replicas: Sequence[ReplicaFiles], world: ReplicaWorld) -> None:
        """Drain them all, then take each away when nobody is there any more, or after `grace`."""
        known = [each for each in replicas if each.number in world.servers]
        for replica in known:
            self._pool.drain(replica.number)
        deadline = time.monotonic() + self._section.grace
        for replica in replicas:
            while (left := self._pool.sessions().get(replica.number, 0)) and time.monotonic() < deadline:
                self._wait(LOOK)
            self._count("cut", left)
            if replica in known:
                self._pool.leave(replica.number)
            self._take_away(replica, world.major)

    def _take_away(self, replica: ReplicaFiles, major: int) -> None:
        self._stop(replica, major)
        self._host.remove(replica.path)
        self._drop(replica.number)

    def _mend(self, replica: ReplicaFiles, world: ReplicaWorld) -> None:
        """It is there and does not serve: start it, let it catch up; one that cannot is taken away, to be made anew."""
        if not world.slots[replica.number].streams or self._why_late(replica, world.position):
            if world.in_pool(replica, self._section.address):
                self._pool.drain(replica.number)
            try:
                self._start(replica, world.major)
            except HostError:
                with self._primary():  # if the primary is away it is not the replica's fault
                    self._retire([replica], world)
                raise
        self._join(replica)

    def _add(self, number: int, major: int) -> None:
        section, slot = self._section, f"{self._slot_prefix}{number}"
        taken = {each.port for each in self._host.files()}
        port = self._host.free_port(section.address, section.ports, taken)
        replica = ReplicaFiles(f"{section.directory}/{number}-{port}.new", number, port, False)
        self._host.make_directory()
        with self._primary() as primary:
            settings = primary.at_least()
            primary.create_slot(slot)
        try:
            replica = self._back_up(replica, slot, settings, major)
            self._start(replica, major)
        except HostError:
            with suppress(HostError):
                self._stop(replica, major)
            with suppress(HostError):
                self._host.remove(replica.path)
            with suppress(HostError):
                self._drop(number)
            raise
        self._join(replica)

    def _back_up(self, replica: ReplicaFiles, slot: str, settings: Mapping[str, str], major: int) -> ReplicaFiles:
        from psycopg.conninfo import conninfo_to_dict, make_conninfo

        section = self._section
        parts = {"application_name": slot, "connect_timeout": str(max(2, round(section.connect_timeout)))}
        if section.passfile:
            parts["passfile"] = section.passfile
        self._count("base_backups", 1)
        own = {
            "port": str(replica.port),
            "listen_addresses": section.address,
            "unix_socket_directories": "",
            "cluster_name": slot,
            "hot_standby": "on",
            "archive_mode": "off",
            "wal_retrieve_retry_interval": "500ms",
        }
        try:
            conninfo = make_conninfo(section.conninfo, **parts)
            self._host.back_up(self._tools(major), conninfo, slot, replica, section.backup_timeout)
            self._host.configure(replica, {**settings, **own, **section.settings}, section.hba_file)
            return self._host.finish(replica)
        except Refused:
            raise
        except HostError as error:
            if "No space left" in str(error):
                raise HostError(f"{self._name}: no room in {section.directory}: {error}; make some") from None
            told = conninfo_to_dict(section.conninfo)
            raise error_of(self._name, str(error), str(told.get("user")), str(told.get("dbname"))) from None

    def _start(self, replica: ReplicaFiles, major: int) -> None:
        """Start it, and wait until it streams and is less late than max_lag."""
        self._host.start(self._tools(major), replica, self._section.stop_timeout)
        deadline, again = time.monotonic() + self._section.join_timeout, time.monotonic() + START_AGAIN
        with self._primary() as primary:
            position, seen = primary.position(), time.monotonic()
            while why := self._why_behind(replica, primary, position):
                if time.monotonic() > deadline:
                    log = self._host.why(replica)
                    raise HostError(
                        f"{self._name}: replica {replica.number} {why}, {self._section.join_timeout:g} s "
                        f"(join_timeout) after its start; it is taken away. {log}"
                    )
                if why.startswith("does not answer") and time.monotonic() > again:
                    self._host.start(self._tools(major), replica, self._section.stop_timeout)
                    again = time.monotonic() + START_AGAIN
                if time.monotonic() - seen > self._section.max_lag:
                    position, seen = primary.position(), time.monotonic()
                self._wait(LOOK)

    def _why_behind(self, replica: ReplicaFiles, primary: PostgresServer, position: int) -> str:
        """Why it is not where the primary's log was; Refused if it lets nobody in."""
        try:
            with self._server_of(replica) as server:
                replayed = server.replayed()
        except Refused:
            raise
        except HostError as error:
            return f"does not answer ({error})"
        slot = primary.slots(self._slot_prefix).get(f"{self._slot_prefix}{replica.number}")
        if slot is None or not slot.streams or replayed is None:
            return "does not stream"
        return "" if replayed >= position else f"is {position - replayed} bytes late"

    def _join(self, replica: ReplicaFiles) -> None:
        address = self._section.address
        server = self._pool.servers().get(replica.number)
        if server is not None and not server.idle and (server.address, server.port) != (address, replica.port):
            self._pool.leave(replica.number)
        self._pool.join(replica.number, address, replica.port)
        deadline = time.monotonic() + self._section.join_timeout
        while not ((server := self._pool.servers().get(replica.number)) and server.serves):
            if time.monotonic() > deadline:
                raise HostError(f"{self._name}: HAProxy's check of replica {replica.number} fails; see its log")
            self._wait(LOOK)

    def _stop(self, replica: ReplicaFiles, major: int) -> None:
        self._host.stop(self._tools(major), replica, self._section.stop_timeout)

    def _drop(self, number: int) -> None:
        deadline = time.monotonic() + self._section.stop_timeout
        with self._primary() as primary:
            while not primary.drop_slot(f"{self._slot_prefix}{number}"):
                if time.monotonic() > deadline:
                    raise HostError(
                        f"{self._name}: slot {self._slot_prefix}{number} is in use by somebody else; end it"
                    )
                self._wait(LOOK)

    # -- where things are -------------------------------------------------------

    @cached_property
    def _name(self) -> str:
        return f"resource {self._section.name} of {self._section.peer}"

    def _tools(self, major: int) -> str:
        return self._section.bin_directory.replace("{version}", str(major))

    @contextmanager
    def _primary(self) -> Iterator[PostgresServer]:
        section = self._section
        secret = self._host.read(section.passfile)
        where = f"{self._name}: primary"
        with connection_to(where, section.conninfo, secret, section.connect_timeout) as server:
            yield server

    @contextmanager
    def _server_of(self, replica: ReplicaFiles) -> Iterator[PostgresServer]:
        section = self._section
        own = {
            "host": section.address,
            "port": replica.port,
            "hostaddr": None,
            "sslmode": "prefer",
            "sslrootcert": None,
        }
        secret = self._host.read(section.passfile)
        where = f"{self._name}: replica {replica.number}"
        with connection_to(where, section.conninfo, secret, section.connect_timeout, **own) as server:
            yield server
