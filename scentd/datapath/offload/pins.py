"""Pins: names in a BPF file system that keep maps, programs and links when the process ends.

Names there cannot have a dot.
"""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import suppress

from scentd.datapath.offload.libbpf import BpfError, check, libc, library

BPFFS_MAGIC = 0xCAFE4A11  # linux/magic.h
STATFS_ROOM = 256  # bytes; struct statfs is smaller everywhere, its first member is the type, a long
READ_ONLY = (
    "outside of this service it may be writable: ProtectKernelTunables=yes does that; the unit as shipped has "
    "ReadOnlyPaths=/sys /proc/sys and ReadWritePaths=-/sys/fs/bpf in its place (systemctl cat scentd)"
)
NO_BPFFS = "datapath.pin_dir must be a directory of a BPF file system: mount -t bpf bpf /sys/fs/bpf"
NEW = "~"  # suffix of the pin that is about to replace the one of this name


def is_bpffs(directory: str) -> bool:
    """Whether the directory is on a BPF file system. Raises OSError if it does not exist."""
    buffer = ctypes.create_string_buffer(STATFS_ROOM)
    if libc().statfs(os.fsencode(directory), buffer) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), directory)
    return ctypes.c_ulong.from_buffer(buffer).value & 0xFFFFFFFF == BPFFS_MAGIC


def pin(fd: int, path: str) -> None:
    """Pin a descriptor. Raises BpfError if the name exists, or the directory is not on a BPF file system."""
    result = library().bpf_obj_pin(fd, os.fsencode(path))
    if result < 0:
        raise BpfError(-result, f"pinning {path}", NO_BPFFS if -result in (errno.EPERM, errno.ENOENT) else "")


def get(path: str) -> int | None:
    """Open what is pinned and return its file descriptor, None without such a name. Raises BpfError."""
    fd = library().bpf_obj_get(os.fsencode(path))
    return None if fd == -errno.ENOENT else check(fd, f"pin {path}")


def unpin(path: str) -> None:
    """Remove the name; a missing one is no error. Raises OSError."""
    with suppress(FileNotFoundError):
        os.unlink(path)


def replace_pin(fd: int, path: str) -> None:
    """Replace a pin: a process that opens the path gets the old object or the new one. Raises BpfError."""
    new = path + NEW
    unpin(new)
    pin(fd, new)
    try:
        os.rename(new, path)
    except OSError as error:
        unpin(new)
        raise BpfError(error.errno or errno.EIO, f"pinning {path}") from error
