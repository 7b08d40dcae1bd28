"""libbpf.so.1 through ctypes: the library, its errors, objects.

Maps of an object are used through bpfmap (elements, ring buffer), its programs through bpfprog (test runs, links).
Everything blocks for as long as the kernel takes and may be called from any thread. A file descriptor that a
function returns is the caller's to close; those of an Object are the Object's.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import logging
import os
import threading
from collections.abc import Iterator
from ctypes import POINTER, c_bool, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from struct import Struct
from typing import Any, NamedTuple

from scentd.errors import HostError
from scentd.system import debian

log = logging.getLogger(__name__)

LIBRARY = "libbpf.so.1"
VERIFIER_STATISTICS = ("processed ", "verification time ", "stack depth ")  # lines after its verdict
PRINT_DEBUG = 2  # enum libbpf_print_level
WAYS_OUT = {
    errno.EPERM: "needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (root, or the unit's CapabilityBoundingSet and "
    "AmbientCapabilities) and the system call bpf (the unit's SystemCallFilter)",
    errno.ENOSYS: "this kernel has no bpf(): use one with CONFIG_BPF_SYSCALL",
    errno.ENOMEM: "the kernel gave no memory: raise LimitMEMLOCK on kernels before 5.11, lower the number of entries",
}
REFUSAL = "the kernel is too old for it or its verifier refused it"

Print = ctypes.CFUNCTYPE(c_int, c_int, c_void_p, c_void_p)
SampleCallback = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)

MAP_INFO = Struct("=IIIIII16s")

messages = threading.local()  # .lines: libbpf's messages to a thread that collects them


class BpfError(HostError):
    """The kernel or libbpf refused. `code` is the errno."""

    def __init__(self, code: int, what: str, way_out: str = "") -> None:
        way_out = way_out or WAYS_OUT.get(code, "")
        super().__init__(f"{what}: {os.strerror(code)}" + (f"; {way_out}" if way_out else ""))
        self.code = code


class LoadError(BpfError):
    """An object was not opened or loaded. `log` is all that libbpf printed, with the verifier's log."""

    def __init__(self, code: int, what: str, way_out: str, log: str) -> None:
        super().__init__(code, what, way_out)
        self.log = log


class MapInfo(NamedTuple):
    """struct bpf_map_info. Sizes in bytes."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


BATCH = [c_int, c_void_p, c_void_p, POINTER(c_uint32), c_void_p]
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "libbpf_set_print": (c_void_p, [Print]),
    "libbpf_num_possible_cpus": (c_int, []),
    "bpf_object__open_file": (c_void_p, [c_char_p, c_void_p]),
    "bpf_object__load": (c_int, [c_void_p]),
    "bpf_object__close": (None, [c_void_p]),
    "bpf_object__next_map": (c_void_p, [c_void_p, c_void_p]),
    "bpf_object__next_program": (c_void_p, [c_void_p, c_void_p]),
    "bpf_map__name": (c_char_p, [c_void_p]),
    "bpf_map__fd": (c_int, [c_void_p]),
    "bpf_map__type": (c_int, [c_void_p]),
    "bpf_map__key_size": (c_uint32, [c_void_p]),
    "bpf_map__value_size": (c_uint32, [c_void_p]),
    "bpf_map__reuse_fd": (c_int, [c_void_p, c_int]),
    "bpf_map__set_max_entries": (c_int, [c_void_p, c_uint32]),
    "bpf_program__name": (c_char_p, [c_void_p]),
    "bpf_program__fd": (c_int, [c_void_p]),
    "bpf_program__set_autoload": (c_int, [c_void_p, c_bool]),
    "bpf_map_lookup_elem_flags": (c_int, [c_int, c_char_p, c_void_p, c_uint64]),
    "bpf_map_update_elem": (c_int, [c_int, c_char_p, c_char_p, c_uint64]),
    "bpf_map_delete_elem": (c_int, [c_int, c_char_p]),
    "bpf_map_get_next_key": (c_int, [c_int, c_char_p, c_void_p]),
    "bpf_map_lookup_batch": (c_int, [c_int, c_char_p, c_void_p, *BATCH[1:]]),
    "bpf_map_update_batch": (c_int, BATCH),
    "bpf_map_delete_batch": (c_int, [c_int, c_void_p, POINTER(c_uint32), c_void_p]),
    "bpf_obj_pin": (c_int, [c_int, c_char_p]),
    "bpf_obj_get": (c_int, [c_char_p]),
    "bpf_obj_get_info_by_fd": (c_int, [c_int, c_void_p, POINTER(c_uint32)]),
    "bpf_link_create": (c_int, [c_int, c_int, c_int, c_void_p]),
    "bpf_link_update": (c_int, [c_int, c_int, c_void_p]),
    "bpf_link_detach": (c_int, [c_int]),
    "bpf_prog_query": (c_int, [c_int, c_int, c_uint32, c_void_p, c_void_p, POINTER(c_uint32)]),
    "bpf_prog_test_run_opts": (c_int, [c_int, c_void_p]),
    "ring_buffer__new": (c_void_p, [c_int, SampleCallback, c_void_p, c_void_p]),
    "ring_buffer__epoll_fd": (c_int, [c_void_p]),
    "ring_buffer__consume": (c_int, [c_void_p]),
    "ring_buffer__free": (None, [c_void_p]),
}


def available() -> str | None:
    """None if the library can be loaded, else the reason and the way out."""
    try:
        library()
    except HostError as error:
        return str(error)
    return None


@functools.cache
def library() -> ctypes.CDLL:
    """The library with its prototypes, its messages routed to us. Raises HostError without it."""
    try:
        lib = ctypes.CDLL(LIBRARY, use_errno=True)
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise HostError(f"{error}; datapath.offload needs libbpf: {debian.install(LIBRARY)}") from None
    lib.libbpf_set_print(on_message)
    return lib


@functools.cache
def libc() -> ctypes.CDLL:
    lib = ctypes.CDLL(None, use_errno=True)
    lib.vasprintf.argtypes = [POINTER(c_void_p), c_void_p, c_void_p]
    lib.free.argtypes = [c_void_p]
    return lib


@Print
def on_message(level: int, pattern: int, arguments: int) -> int:
    """Receive a message of libbpf, on the thread that called it.

    The va_list is passed on as a pointer: in the ABIs of Linux it is a pointer, or is passed by reference.
    """
    if level == PRINT_DEBUG:
        return 0
    text = c_void_p()
    length = libc().vasprintf(ctypes.byref(text), pattern, arguments)
    if length < 0:
        return length
    message = ctypes.string_at(text, length).decode(errors="replace")
    libc().free(text)
    lines = getattr(messages, "lines", None)
    if lines is None:
        log.info("%s", message.rstrip())
    else:
        lines.append(message)
    return length


def check(result: int, what: str) -> int:
    """Return the result of a call. A negative one is an errno: raises BpfError, whose text begins with `what`."""
    if result < 0:
        raise BpfError(-result, what)
    return result


class Object:
    """An object file: open, then `reuse` and `resize`, then `load`. Raises LoadError."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lib = library()
        with MessageCollector() as collector:
            self._object = self._lib.bpf_object__open_file(os.fsencode(path), None)
            code = ctypes.get_errno()
        if not self._object:
            raise LoadError(code, path, "build it with make -C bpf", collector.text())
        self._maps = dict(self._each(self._lib.bpf_object__next_map, self._lib.bpf_map__name))
        self._programs = dict(self._each(self._lib.bpf_object__next_program, self._lib.bpf_program__name))

    def __enter__(self) -> Object:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _each(self, step: Any, name: Any) -> Iterator[tuple[str, int]]:
        item = None
        while item := step(self._object, item):
            yield name(item).decode(), item

    def _map(self, name: str) -> int:
        if name not in self._maps:
            raise HostError(f"{self.path}: no map {name}: the file is of another version; build it with make -C bpf")
        return self._maps[name]

    def _program(self, name: str) -> int:
        if name not in self._programs:
            raise HostError(
                f"{self.path}: no program {name}: the file is of another version; build it with make -C bpf"
            )
        return self._programs[name]

    def maps(self) -> list[str]:
        return list(self._maps)

    def programs(self) -> list[str]:
        return list(self._programs)

    def reuse(self, name: str, fd: int) -> None:
        """Use the map of `fd`, with its own number of entries, instead of a new one. Call it before load.

        Raises HostError if the map has another type or other sizes.
        """
        item, lib = self._map(name), self._lib
        want = lib.bpf_map__type(item), lib.bpf_map__key_size(item), lib.bpf_map__value_size(item)
        info = map_info(fd)
        actual = info.type, info.key_size, info.value_size
        if want != actual:
            raise HostError(
                f"{self.path}: map {name}: type, key and value size are {want}, those of the map to take over "
                f"{actual}; remove it with scentd cleanup"
            )
        check(lib.bpf_map__reuse_fd(item, fd), f"{self.path}: map {name}: taking over")

    def resize(self, name: str, max_entries: int) -> None:
        """Before load."""
        check(self._lib.bpf_map__set_max_entries(self._map(name), max_entries), f"{self.path}: map {name}: resizing")

    def leave_out(self, name: str) -> None:
        """Do not load this program. Before load."""
        check(self._lib.bpf_program__set_autoload(self._program(name), False), f"{self.path}: program {name}")

    def load(self) -> None:
        """Make the maps and load the programs through the kernel's verifier. Raises LoadError."""
        with MessageCollector() as collector:
            result = self._lib.bpf_object__load(self._object)
        if result < 0:
            text = collector.text()
            raise LoadError(-result, f"{self.path}: not loaded", reason(-result, text), text)

    def map_fd(self, name: str) -> int:
        """After load."""
        return check(self._lib.bpf_map__fd(self._map(name)), f"{self.path}: map {name}")

    def program_fd(self, name: str) -> int:
        """After load."""
        return check(self._lib.bpf_program__fd(self._program(name)), f"{self.path}: program {name}")

    def close(self) -> None:
        """Close all its file descriptors. Pinned maps and attached programs stay in the kernel."""
        if self._object:
            self._lib.bpf_object__close(self._object)
            self._object = None


class MessageCollector:
    """Context manager that collects libbpf's messages to this thread."""

    def __enter__(self) -> MessageCollector:
        self.lines: list[str] = []
        messages.lines = self.lines
        return self

    def __exit__(self, *_: object) -> None:
        messages.lines = None

    def text(self) -> str:
        return "".join(self.lines)


def reason(code: int, text: str) -> str:
    """The way out of a failed load, or else the last line of the verifier's log."""
    if code in WAYS_OUT:
        return WAYS_OUT[code]
    _, _, verifier = text.rpartition("-- BEGIN PROG LOAD LOG --")
    lines = verifier.partition("-- END PROG LOAD LOG --")[0].splitlines()
    said = [line for line in lines if line.strip() and not line.startswith(VERIFIER_STATISTICS)]
    return REFUSAL + (f": {said[-1].strip()}" if said else "")


def map_info(fd: int) -> MapInfo:
    """Raises BpfError."""
    kind, number, key_size, value_size, max_entries, flags, name = MAP_INFO.unpack(info(fd, MAP_INFO.size))
    return MapInfo(kind, number, key_size, value_size, max_entries, flags, name_text(name))


def name_text(name: bytes) -> str:
    """An object's name from the kernel's form: up to 15 characters, padded with zeros."""
    return name.rstrip(b"\0").decode()


def info(fd: int, size: int) -> bytes:
    """The first `size` bytes of the kernel's information about a map, program or link. Raises BpfError."""
    buffer = ctypes.create_string_buffer(size)
    length = c_uint32(size)
    check(library().bpf_obj_get_info_by_fd(fd, buffer, ctypes.byref(length)), f"BPF file descriptor {fd}")
    return buffer.raw
