"""The program that counts what the sockets of cgroups receive and send (bpf/application.bpf.c), on those cgroups.

It works with datapath.offload = "off", too. Its map and its links are pinned in PIN_DIR/applications: they go on if the
daemon is killed, and the next one takes them over. A cgroup whose last source is gone loses the program; with the last
one of all nothing is left.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import Struct

from scentd.datapath.offload import bpfprog, pins, programs
from scentd.datapath.offload.bpfmap import Map
from scentd.datapath.offload.libbpf import WAYS_OUT, BpfError, Object
from scentd.datapath.offload.tcx import drop, open_link
from scentd.errors import HostError

OBJECT = Path(__file__).with_name("application.bpf.o")
PROGRAM = "scent_application"
BYTES = "bytes"  # the map, and its pin
TYPES = {"ingress": 0, "egress": 1}  # BPF_CGROUP_INET_INGRESS, BPF_CGROUP_INET_EGRESS
PIN = re.compile(r"link-([0-9]+)-(?:ingress|egress)")
KEY = Struct("=QI4x")  # struct bpf_cgroup_storage_key
TOTAL = Struct("=Q")
EXCLUSIVE = f"a program above it may allow no other (see bpftool cgroup tree), or scentd {WAYS_OUT[errno.EPERM]}"


class CgroupBytes:
    """One source's counter, of one cgroup at a time. Every method may raise HostError; any thread may call."""

    def __init__(self, applications: Applications) -> None:
        self._applications = applications

    def read(self, directory: Path) -> tuple[int, int, int]:
        """(number of the cgroup, bytes received, bytes sent) since it has the program. `directory`: on v2.

        Another cgroup under the same path has another number.
        """
        return self._applications.read(self, directory)

    def close(self) -> None:
        """May be called twice."""
        self._applications.close(self)


class Applications:
    """The program on cgroups, for all sources of this host. Every method may raise HostError; any thread may call."""

    def __init__(self, pin_dir: str) -> None:
        self._directory = directory_of(pin_dir)
        self._lock = threading.Lock()
        self._loaded: Object | None = None
        self._numbers: dict[CgroupBytes, int] = {}  # the cgroup that each open counter counts; 0: none yet

    def open(self) -> CgroupBytes:
        counter = CgroupBytes(self)
        with self._lock:
            self._numbers[counter] = 0
        return counter

    def read(self, counter: CgroupBytes, directory: Path) -> tuple[int, int, int]:
        with self._lock, open_directory(directory) as cgroup:
            if counter not in self._numbers:
                raise HostError(f"{directory}: its source was closed meanwhile")
            number = os.fstat(cgroup).st_ino
            self._hold(counter, number)
            totals = self._totals(number) if self._is_on(number) else None
            if totals is None:
                self._attach(cgroup, number, directory)
                totals = self._totals(number) or (0, 0)
            return number, *totals

    def close(self, counter: CgroupBytes) -> None:
        with self._lock:
            if counter not in self._numbers:
                return
            self._hold(counter, 0)
            del self._numbers[counter]
        self.sweep()

    def sweep(self) -> None:
        """Take the program off cgroups that no counter reads: those of a daemon that was killed, of a reload."""
        with self._lock:
            if not self._numbers:
                remove_pins(self._directory)
                if self._loaded is not None:
                    self._loaded.close()
                    self._loaded = None
                return
            for path, number in links(self._directory):
                if number not in self._numbers.values():
                    take_off(path)

    def _hold(self, counter: CgroupBytes, number: int) -> None:
        before = self._numbers[counter]
        self._numbers[counter] = number
        if before and before not in self._numbers.values():
            for name in TYPES:
                take_off(self._path(before, name))

    def _is_on(self, number: int) -> bool:
        """Whether both links are there and nobody has detached them."""
        self._load()
        for name in TYPES:
            with open_link(self._path(number, name)) as link:
                if link is None or bpfprog.linked_cgroup(link) != number:
                    return False
        return True

    def _totals(self, number: int) -> tuple[int, int] | None:
        """None if this map has no counters for the cgroup: the program was never on it."""
        table = Map(self._load().map_fd(BYTES))
        values = [table.lookup(KEY.pack(number, kind)) for kind in TYPES.values()]
        received, sent = (None if v is None else sum(TOTAL.unpack(p)[0] for p in table.parts(v)) for v in values)
        return None if received is None or sent is None else (received, sent)

    def _attach(self, cgroup: int, number: int, directory: Path) -> None:
        loaded = self._load()
        self._pin(loaded)  # somebody may have removed it since
        program = loaded.program_fd(PROGRAM)
        for name, kind in TYPES.items():
            path = self._path(number, name)
            take_off(path)  # of a link that somebody has detached
            try:
                link = bpfprog.link_create(program, cgroup, kind, what=f"cgroup {directory}")
            except BpfError as error:
                if error.code != errno.EPERM:
                    raise
                raise BpfError(error.code, f"attaching to cgroup {directory}", EXCLUSIVE) from None
            try:
                pins.pin(link, path)
            finally:
                os.close(link)

    def _load(self) -> Object:
        """The object, with the map and the links of a daemon that was killed, if there are any."""
        if self._loaded is not None:
            return self._loaded
        loaded = Object(str(OBJECT))
        try:
            with open_link(str(self._directory / BYTES)) as table:
                if table is not None:
                    loaded.reuse(BYTES, table)
                loaded.load()
            self._pin(loaded)
            for path, _ in links(self._directory):
                take_over(path, loaded.program_fd(PROGRAM))
        except HostError:
            loaded.close()
            raise
        self._loaded = loaded
        return loaded

    def _pin(self, loaded: Object) -> None:
        programs.make_directory(self._directory)
        path = self._directory / BYTES
        if not path.exists():
            pins.pin(loaded.map_fd(BYTES), str(path))

    def _path(self, number: int, name: str) -> str:
        return str(self._directory / f"link-{number}-{name}")


def directory_of(pin_dir: str) -> Path:
    return Path(pin_dir) / "applications"


@contextmanager
def open_directory(directory: Path) -> Iterator[int]:
    """Raises HostError."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise HostError(f"cgroup {directory}: {error.strerror}; is it there?") from None
    try:
        yield fd
    finally:
        os.close(fd)


def links(directory: Path) -> list[tuple[str, int]]:
    """(pin, number of its cgroup) of every link."""
    matches = [PIN.fullmatch(name) for name in (os.listdir(directory) if directory.is_dir() else [])]
    return [(str(directory / match[0]), int(match[1])) for match in matches if match]


def take_over(path: str, program: int) -> None:
    """Have a link run this program, which may be a newer one; drop it if its cgroup is gone."""
    with open_link(path) as link:
        if link is not None and bpfprog.linked_cgroup(link):
            bpfprog.link_update(link, program)
            return
    take_off(path)


def remove(pin_dir: str) -> None:
    """Take the program off all cgroups, and remove all pins. Having none is no error."""
    remove_pins(directory_of(pin_dir))


def remove_pins(directory: Path) -> None:
    for path, _ in links(directory):
        take_off(path)
    if directory.is_dir():
        with naming(directory):
            pins.unpin(str(directory / BYTES))
            directory.rmdir()


def take_off(path: str) -> None:
    """Detach a link, if there is one, and remove its pin."""
    with naming(path):
        drop(path)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}; `scentd cleanup` as root removes it") from None
