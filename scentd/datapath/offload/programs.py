"""The two BPF objects, loaded: their maps by name ("stamp.outgoing"), their programs, and the pins of the maps.

Maps are pinned below PIN_DIR/maps-VERSION, so that the next daemon goes on with the same state while the
programs run. Programs need no pins: their attachments hold them.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from scentd.core.offload.coverage import Direction
from scentd.datapath.offload import pins
from scentd.datapath.offload.bpfmap import Map
from scentd.datapath.offload.libbpf import Object, map_info
from scentd.errors import HostError
from scentd.wire import maps

OBJECTS = {name: Path(__file__).with_name(f"{name}.bpf.o") for name in ("stamp", "verify")}
ETHERNET = 14
LAYERS = {ETHERNET: "l2", 0: "l3"}  # by bytes of link layer in front of the IP header
SPARE = 2  # maps get so many times the entries needed, so that most reloads need no new ones
LEAST_ENTRIES = 1024
STATE_MAPS = ("stamp.outgoing", "verify.receiving")  # maps whose entries do not come from the configuration
OF_DIRECTION: dict[Direction, str] = {"egress": "stamp", "ingress": "verify", "bridged": "verify"}


class Programs:
    """Both objects in the kernel; their maps are new, or those of `pinned` (file descriptors, which it closes).

    `sizes`: entries of the maps that grow with the configuration. Raises HostError.
    """

    def __init__(self, sizes: Mapping[str, int], pinned: Mapping[str, int] | None = None) -> None:
        self.reuses_maps = bool(pinned)
        self._objects: dict[str, Object] = {}  # by program: each is an object with this program alone
        self.maps: dict[str, Map] = {}
        self._fds: dict[str, int] = {}
        try:
            for name, path in OBJECTS.items():
                self._load(name, path, sizes, pinned or {})
        except HostError:
            self.close()
            raise
        finally:
            for fd in (pinned or {}).values():
                os.close(fd)

    def _load(self, name: str, path: Path, sizes: Mapping[str, int], pinned: Mapping[str, int]) -> None:
        """Make the maps, with the program that nearly every interface needs."""
        program = program_of(name, ETHERNET)
        loaded = self._objects[program] = opened(name, program)
        own = {inner: f"{name}.{inner}" for inner in loaded.maps()}
        for inner, full in own.items():
            if full in pinned:
                loaded.reuse(inner, pinned[full])
            elif full in sizes:
                loaded.resize(inner, sizes[full])
        loaded.load()
        for inner, full in own.items():
            self._fds[full] = loaded.map_fd(inner)
            if inner != "events":
                self.maps[full] = Map(self._fds[full])

    def program(self, direction: Direction, header: int, port: bool = False) -> int:
        """The file descriptor of the program for an interface with so many bytes in front of IP; `port`: a bridge's."""
        name = OF_DIRECTION[direction]
        program = program_of(name, header, port)
        if program not in self._objects:  # loaded when it is needed, as the kernel checks it for long
            loaded = opened(name, program)
            try:
                for inner in loaded.maps():
                    loaded.reuse(inner, self._fds[f"{name}.{inner}"])
                loaded.load()
            except HostError:
                loaded.close()
                raise
            self._objects[program] = loaded
        return self._objects[program].program_fd(program)

    def events(self) -> int:
        """The file descriptor of the ring buffer."""
        return self._fds["verify.events"]

    def capacity(self, name: str) -> int:
        """The number of entries that a map can hold."""
        return map_info(self._fds[name]).max_entries

    def pin(self, pin_dir: str) -> None:
        """Pin all maps, each in the place of an older one. Raises HostError."""
        directory = maps_directory(pin_dir)
        make_directory(directory)
        for name, fd in self._fds.items():
            pins.replace_pin(fd, str(directory / pin_name(name)))

    def close(self) -> None:
        """Close the descriptors. Pinned maps and attached programs stay in the kernel."""
        for loaded in self._objects.values():
            loaded.close()


def opened(name: str, program: str) -> Object:
    """An object that will load this program alone."""
    loaded = Object(str(OBJECTS[name]))
    for other in {program_of(name, header, port) for header in LAYERS for port in (False, True)} - {program}:
        loaded.leave_out(other)
    return loaded


def program_of(name: str, header: int, port: bool = False) -> str:
    """The name of an object's program for an interface with so many bytes in front of IP; `port`: a bridge's."""
    return f"scent_{name}_{'port' if port else LAYERS[header]}"


def with_spare(needed: Mapping[str, int]) -> dict[str, int]:
    return {name: max(LEAST_ENTRIES, SPARE * n) for name, n in needed.items()}


def enlarge(loaded: Programs, needed: Mapping[str, int]) -> Programs:
    """Load the programs with larger maps, with the entries of STATE_MAPS copied."""
    result = Programs(with_spare(needed))
    for name in STATE_MAPS:
        result.maps[name].update_many(loaded.maps[name].items())
    return result


def maps_directory(pin_dir: str) -> Path:
    return Path(pin_dir) / f"maps-{maps.MAPS_VERSION}"


def pin_name(name: str) -> str:
    return name.replace(".", "-")


def make_directory(path: Path) -> None:
    """Make the directory, which must be on a BPF file system. Raises HostError."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if pins.is_bpffs(str(path)):
            return
        path.rmdir()
    except OSError as error:
        way_out = pins.READ_ONLY if error.errno == errno.EROFS else pins.NO_BPFFS
        raise HostError(f"datapath.pin_dir {path.parent}: {error.strerror}; {way_out}") from None
    raise HostError(
        f"datapath.pin_dir {path.parent}: not on a BPF file system; name a directory below one (/sys/fs/bpf)"
    )


def open_pinned(pin_dir: str) -> dict[str, int] | None:
    """Open the maps that a daemon of this version has pinned, by name; None if any is missing."""
    names = [f"{name}.{inner}" for name, path in OBJECTS.items() for inner in map_names(path)]
    fds = {name: pins.get(str(maps_directory(pin_dir) / pin_name(name))) for name in names}
    existing = {name: fd for name, fd in fds.items() if fd is not None}
    if len(existing) == len(names):
        return existing
    for fd in existing.values():
        os.close(fd)
    return None


def map_names(path: Path) -> list[str]:
    with Object(str(path)) as opened:
        return opened.maps()


def unpin(pin_dir: str) -> None:
    """Remove the maps' pins of all versions, and the directory if it is empty then. Having none is no error."""
    top = Path(pin_dir)
    for directory in top.glob("maps-*"):
        shutil.rmtree(directory)
    if top.is_dir() and not any(top.iterdir()):
        top.rmdir()
