"""The two BPF objects, loaded: their maps by name ("stamp.outgoing"), their programs, and the pins of the maps.

Maps are pinned below PIN_DIR/maps-VERSION, so that a daemon that comes after this one goes on with the
same state while the programs run. Programs need no pins: what they are attached to holds them.
"""

from __future__ import annotations

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
LAYERS = {14: "l2", 0: "l3"}  # by bytes of link layer in front of the IP header
SPARE = 2  # maps are made so many times as large as needed, so that most reloads need no new ones
LEAST_ENTRIES = 1024
CARRIED = ("stamp.outgoing", "verify.receiving")  # what is not made of the configuration
OF_DIRECTION: dict[Direction, str] = {"egress": "stamp", "ingress": "verify"}


class Programs:
    """Both objects in the kernel; their maps are new, or those of `taken` (file descriptors, which it closes).

    `sizes`: entries of the maps that grow with the configuration. Raises HostError.
    """

    def __init__(self, sizes: Mapping[str, int], taken: Mapping[str, int] | None = None) -> None:
        self.taken_over = bool(taken)
        self._objects: dict[str, Object] = {}
        self.maps: dict[str, Map] = {}
        self._fds: dict[str, int] = {}
        try:
            for name, path in OBJECTS.items():
                self._load(name, path, sizes, taken or {})
        except HostError:
            self.close()
            raise
        finally:
            for fd in (taken or {}).values():
                os.close(fd)

    def _load(self, name: str, path: Path, sizes: Mapping[str, int], taken: Mapping[str, int]) -> None:
        loaded = self._objects[name] = Object(str(path))
        own = {inner: f"{name}.{inner}" for inner in loaded.maps()}
        for inner, full in own.items():
            if full in taken:
                loaded.reuse(inner, taken[full])
            elif full in sizes:
                loaded.resize(inner, sizes[full])
        loaded.load()
        for inner, full in own.items():
            self._fds[full] = loaded.map_fd(inner)
            if inner != "events":
                self.maps[full] = Map(self._fds[full])

    def program(self, direction: Direction, header: int) -> int:
        """The file descriptor of the program for an interface with so many bytes in front of IP."""
        name = OF_DIRECTION[direction]
        return self._objects[name].program_fd(f"scent_{name}_{LAYERS[header]}")

    def events(self) -> int:
        """The file descriptor of the ring buffer."""
        return self._fds["verify.events"]

    def room(self, name: str) -> int:
        """How many entries a map has room for."""
        return map_info(self._fds[name]).max_entries

    def pin(self, pin_dir: str) -> None:
        """Pin all maps, each in the place of one that is there. Raises HostError."""
        directory = maps_directory(pin_dir)
        make_directory(directory)
        for name, fd in self._fds.items():
            pins.replace_pin(fd, str(directory / pin_name(name)))

    def close(self) -> None:
        """Pinned maps and attached programs stay in the kernel."""
        for loaded in self._objects.values():
            loaded.close()


def grown(needed: Mapping[str, int]) -> dict[str, int]:
    return {name: max(LEAST_ENTRIES, SPARE * n) for name, n in needed.items()}


def larger(loaded: Programs, needed: Mapping[str, int]) -> Programs:
    """The programs with larger maps that hold what these hold."""
    made = Programs(grown(needed))
    for name in CARRIED:
        made.maps[name].update_many(loaded.maps[name].items())
    return made


def maps_directory(pin_dir: str) -> Path:
    return Path(pin_dir) / f"maps-{maps.MAPS_VERSION}"


def pin_name(name: str) -> str:
    return name.replace(".", "-")


def make_directory(path: Path) -> None:
    """On the BPF file system. Raises HostError."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if pins.is_bpffs(str(path)):
            return
        path.rmdir()
    except OSError as error:
        raise HostError(f"datapath.pin_dir {path.parent}: {error.strerror}; {pins.NO_BPFFS}") from None
    raise HostError(
        f"datapath.pin_dir {path.parent}: not on a BPF file system; name a directory below one (/sys/fs/bpf)"
    )


def pinned(pin_dir: str) -> dict[str, int] | None:
    """File descriptors of the maps that a daemon of this version has left, by name; None if not all are there."""
    names = [f"{name}.{inner}" for name, path in OBJECTS.items() for inner in map_names(path)]
    fds = {name: pins.get(str(maps_directory(pin_dir) / pin_name(name))) for name in names}
    there = {name: fd for name, fd in fds.items() if fd is not None}
    if len(there) == len(names):
        return there
    for fd in there.values():
        os.close(fd)
    return None


def map_names(path: Path) -> list[str]:
    with Object(str(path)) as opened:
        return opened.maps()


def unpin(pin_dir: str) -> None:
    """Remove the maps' pins of all versions, and the directory if it is empty then. None there is fine."""
    top = Path(pin_dir)
    for directory in top.glob("maps-*"):
        shutil.rmtree(directory)
    if top.is_dir() and not any(top.iterdir()):
        top.rmdir()
