"""Maps by file descriptor: their elements one by one and in batches, and the ring buffer."""

from __future__ import annotations

import ctypes
import errno
import logging
from collections.abc import Callable, Iterable, Iterator
from ctypes import byref, c_size_t, c_uint32, c_uint64, create_string_buffer
from itertools import islice
from typing import Any, TypeVar

from scentd.datapath.offload.libbpf import BpfError, SampleCallback, check, library, map_info

log = logging.getLogger(__name__)

T = TypeVar("T")

F_LOCK = 4  # BPF_F_LOCK: under the element's struct bpf_spin_lock
CHUNK = 4096  # elements in one call
PER_CPU = {5, 6, 10, 21}  # BPF_MAP_TYPE_PERCPU_HASH, _PERCPU_ARRAY, _LRU_PERCPU_HASH, _PERCPU_CGROUP_STORAGE
ENOTSUPP = 524  # linux/errno.h; the kernel lets it out
NO_BATCH = {errno.EINVAL, errno.EOPNOTSUPP, ENOTSUPP}


class BatchOptions(ctypes.Structure):
    """struct bpf_map_batch_opts."""

    _fields_ = [("sz", c_size_t), ("elem_flags", c_uint64), ("flags", c_uint64)]


def batch_options(flags: int = 0) -> Any:
    return byref(BatchOptions(sz=ctypes.sizeof(BatchOptions), elem_flags=flags))


class Map:
    """A map behind a file descriptor, which stays the caller's. Keys and values are bytes of exactly the map's sizes.

    In a map with values for each CPU, `value` is all of them in a row, each padded to a multiple of 8 bytes;
    `parts` separates them. `flags` are the kernel's: F_LOCK, BPF_NOEXIST ... Every call may raise BpfError.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.info = map_info(fd)
        self.key_size = self.info.key_size
        self.value_size = self.info.value_size
        if self.info.type in PER_CPU:
            self.value_size = -(-self.info.value_size // 8) * 8 * possible_cpus()
        self._lib = library()

    def lookup(self, key: bytes, flags: int = 0) -> bytes | None:
        value = create_string_buffer(self.value_size)
        result = self._lib.bpf_map_lookup_elem_flags(self.fd, self._key(key), value, flags)
        if result == -errno.ENOENT:
            return None
        self._check(result, "lookup")
        return value.raw

    def parts(self, value: bytes) -> list[bytes]:
        """The values of each possible CPU that `value` has in a row."""
        stride = -(-self.info.value_size // 8) * 8
        return [value[start : start + self.info.value_size] for start in range(0, len(value), stride)]

    def update(self, key: bytes, value: bytes, flags: int = 0) -> None:
        result = self._lib.bpf_map_update_elem(self.fd, self._key(key), self._value(value), flags)
        self._check(result, "update")

    def delete(self, key: bytes) -> bool:
        """Delete an element; whether it existed."""
        result = self._lib.bpf_map_delete_elem(self.fd, self._key(key))
        if result == -errno.ENOENT:
            return False
        self._check(result, "delete")
        return True

    def keys(self) -> Iterator[bytes]:
        return (key for key, _ in self.items())

    def items(self, flags: int = 0) -> Iterator[tuple[bytes, bytes]]:
        """All elements. Elements that are set or deleted meanwhile may be missing; some may come twice."""
        try:
            yield from self._batches(flags)
        except BpfError as error:
            if error.code not in NO_BATCH:
                raise
            yield from self._steps(flags)

    def update_many(self, items: Iterable[tuple[bytes, bytes]], flags: int = 0) -> None:
        """Set many elements. If the kernel refuses one, those before it are set."""
        options = batch_options(flags)
        for chunk in chunks(items):
            keys = b"".join(self._key(key) for key, _ in chunk)
            values = b"".join(self._value(value) for _, value in chunk)
            count = c_uint32(len(chunk))
            result = self._lib.bpf_map_update_batch(self.fd, keys, values, byref(count), options)
            if -result in NO_BATCH:
                for key, value in chunk:
                    self.update(key, value, flags)
            else:
                self._check(result, "update")

    def delete_many(self, keys: Iterable[bytes]) -> int:
        """Delete many elements; how many of them existed."""
        return sum(map(self._delete_chunk, chunks(keys)))

    def _delete_chunk(self, chunk: list[bytes]) -> int:
        keys = create_string_buffer(b"".join(map(self._key, chunk)))
        options = batch_options()
        deleted = done = 0
        while done < len(chunk):
            count = c_uint32(len(chunk) - done)
            result = self._lib.bpf_map_delete_batch(self.fd, byref(keys, done * self.key_size), byref(count), options)
            if -result in NO_BATCH:
                return deleted + sum(map(self.delete, chunk[done:]))
            if result != -errno.ENOENT:
                self._check(result, "delete")
            deleted += count.value
            done += count.value + (result == -errno.ENOENT)  # the kernel stops at a key that does not exist
        return deleted

    def _batches(self, flags: int) -> Iterator[tuple[bytes, bytes]]:
        room = min(CHUNK, self.info.max_entries)
        options = batch_options(flags)
        following = create_string_buffer(max(4, self.key_size))  # a hash map keeps a bucket number in it
        position: bytes | None = None
        result = 0
        while result != -errno.ENOENT:
            keys, values = create_string_buffer(room * self.key_size), create_string_buffer(room * self.value_size)
            count = c_uint32(room)
            result = self._lib.bpf_map_lookup_batch(self.fd, position, following, keys, values, byref(count), options)
            if result == -errno.ENOSPC:  # one bucket of the hash map has more elements
                room *= 2
                continue
            if result not in (-errno.ENOENT, -errno.EINTR):
                self._check(result, "batch lookup")
            if count.value:
                position = following.raw
            yield from zip(
                pieces(keys, self.key_size, count.value), pieces(values, self.value_size, count.value), strict=True
            )

    def _steps(self, flags: int) -> Iterator[tuple[bytes, bytes]]:
        """Elements one by one. After a key deleted meanwhile the kernel starts again: no key is given twice."""
        seen: set[bytes] = set()
        following = create_string_buffer(self.key_size)
        position: bytes | None = None
        while (result := self._lib.bpf_map_get_next_key(self.fd, position, following)) != -errno.ENOENT:
            self._check(result, "next key")
            position = following.raw
            if position in seen:
                continue
            seen.add(position)
            value = self.lookup(position, flags)
            if value is not None:
                yield position, value

    def _key(self, key: bytes) -> bytes:
        return check_size(key, self.key_size, "key")

    def _value(self, value: bytes) -> bytes:
        return check_size(value, self.value_size, "value")

    def _check(self, result: int, what: str) -> None:
        full = f" ({self.info.max_entries} entries at most)" if result == -errno.E2BIG else ""
        check(result, f"BPF map {self.info.name}: {what}{full}")


class RingBuffer:
    """Hands each record of a ring buffer map to `callback`, on the thread that calls consume().

    `fileno()` is readable when there are records. An exception of the callback is logged and counted in `failures`,
    because it cannot pass through C. Raises BpfError.
    """

    def __init__(self, map_fd: int, callback: Callable[[bytes], object]) -> None:
        self.failures = 0
        self._callback = callback
        self._sample = SampleCallback(self._take)  # C calls it for as long as the buffer exists
        self._lib = library()
        self._ring = self._lib.ring_buffer__new(map_fd, self._sample, None, None)
        if not self._ring:
            raise BpfError(ctypes.get_errno(), "opening a BPF ring buffer")

    def fileno(self) -> int:
        return self._lib.ring_buffer__epoll_fd(self._ring)

    def consume(self) -> int:
        """Handle all waiting records and return their number. Does not wait."""
        return check(self._lib.ring_buffer__consume(self._ring), "reading a BPF ring buffer")

    def close(self) -> None:
        """Free the buffer. Not to be called by the callback."""
        if self._ring:
            self._lib.ring_buffer__free(self._ring)
            self._ring = None

    def _take(self, _context: int, data: int, size: int) -> int:
        try:
            self._callback(ctypes.string_at(data, size))
        except Exception:
            self.failures += 1
            log.exception("a record of a BPF ring buffer was not handled")
        return 0


def possible_cpus() -> int:
    """The number of CPUs for which a map has values. Raises BpfError."""
    return check(library().libbpf_num_possible_cpus(), "number of CPUs")


def check_size(data: bytes, size: int, what: str) -> bytes:
    """Return `data` if it has the map's size: the kernel would read beyond shorter data. Raises ValueError."""
    if len(data) != size:
        raise ValueError(f"a {what} of {len(data)} bytes where the map has {size}")
    return data


def chunks(items: Iterable[T]) -> Iterator[list[T]]:
    source = iter(items)
    while chunk := list(islice(source, CHUNK)):
        yield chunk


def pieces(buffer: Any, size: int, count: int) -> Iterator[bytes]:
    data = ctypes.string_at(buffer, size * count)
    return (data[start : start + size] for start in range(0, len(data), size))
