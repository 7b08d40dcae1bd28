"""Programs by file descriptor: the kernel's information about them, test runs, links to interfaces and cgroups.

Interface indices are those of the calling thread's network namespace.
"""

from __future__ import annotations

import ctypes
import errno
from ctypes import c_char_p, c_int, c_size_t, c_uint32, c_void_p
from struct import Struct
from typing import NamedTuple

from scentd.datapath.offload.libbpf import check, info, library, name_text

PROGRAMS_MAX = 64  # BPF_MPROG_MAX: programs on one side of an interface
GROWTH = 4096  # bytes by which a program may lengthen a packet in a test run

PROGRAM_INFO = Struct("=II8sII40x16s112xQQ")
LINK_INFO = Struct("=III4xII")
CGROUP_LINK_INFO = Struct("=16xQ")


class ProgramInfo(NamedTuple):
    """struct bpf_prog_info. Lengths in bytes; the run time only counts with kernel.bpf_stats_enabled=1."""

    type: int
    id: int
    tag: str
    jited_prog_len: int
    xlated_prog_len: int
    name: str
    run_time_ns: int
    run_cnt: int


class LinkInfo(NamedTuple):
    """struct bpf_link_info of a tcx link. `ifindex` is 0 when it is attached to nothing: its interface is gone."""

    type: int
    id: int
    program: int
    ifindex: int
    attach_type: int


class LinkOptions(ctypes.Structure):
    """The members of struct bpf_link_create_opts that older versions of libbpf know, too."""

    _fields_ = [("sz", c_size_t), ("flags", c_uint32)]


class RunOptions(ctypes.Structure):
    """struct bpf_test_run_opts."""

    _fields_ = [
        ("sz", c_size_t),
        ("data_in", c_char_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_char_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    ]


def program_info(fd: int) -> ProgramInfo:
    """Raises BpfError."""
    kind, number, tag, jited, xlated, name, time, count = PROGRAM_INFO.unpack(info(fd, PROGRAM_INFO.size))
    return ProgramInfo(kind, number, tag.hex(), jited, xlated, name_text(name), time, count)


def prog_test_run(program_fd: int, data: bytes, ctx: bytes = b"", repeat: int = 1) -> tuple[int, bytes, bytes, int]:
    """Run a program on a packet. Return its return value, the packet and context after it, ns of a run on average.

    `data` has at least the 14 bytes of an Ethernet header; `ctx` is a struct __sk_buff or empty. If a run changes
    the packet, the next run of `repeat` gets the changed one. Raises BpfError.
    """
    packet = ctypes.create_string_buffer(len(data) + GROWTH)
    context = ctypes.create_string_buffer(max(len(ctx), 1))
    options = RunOptions(
        sz=ctypes.sizeof(RunOptions),
        data_in=data,
        data_size_in=len(data),
        data_out=ctypes.addressof(packet),
        data_size_out=len(packet),
        ctx_in=ctx or None,
        ctx_size_in=len(ctx),
        ctx_out=ctypes.addressof(context) if ctx else None,
        ctx_size_out=len(ctx),
        repeat=repeat,
    )
    check(library().bpf_prog_test_run_opts(program_fd, ctypes.byref(options)), "test run of a BPF program")
    retval = ctypes.c_int32(options.retval).value
    return retval, packet.raw[: options.data_size_out], context.raw[: options.ctx_size_out], options.duration


def link_create(program_fd: int, target: int, attach_type: int, flags: int = 0, what: str = "") -> int:
    """Attach a program for as long as the link has a file descriptor or a pin. Raises BpfError.

    `target`: an interface's index, or a descriptor of a cgroup's directory, which `what` names then.
    """
    options = LinkOptions(sz=ctypes.sizeof(LinkOptions), flags=flags)
    link = library().bpf_link_create(program_fd, target, attach_type, ctypes.byref(options))
    return check(link, f"attaching to {what or f'interface {target}'}")


def link_update(link_fd: int, program_fd: int) -> None:
    """Replace the program of a link; each packet meets the old one or the new one. Raises BpfError."""
    check(library().bpf_link_update(link_fd, program_fd, None), "replacing the program of a link")


def link_detach(link_fd: int) -> None:
    """Detach at once; closing the last reference of a link does it some time later. Raises BpfError."""
    check(library().bpf_link_detach(link_fd), "detaching a link")


def link_info(fd: int) -> LinkInfo:
    """Raises BpfError."""
    return LinkInfo(*LINK_INFO.unpack(info(fd, LINK_INFO.size)))


def linked_cgroup(fd: int) -> int:
    """The number of the cgroup to which a link is attached; 0 if it was detached, or the cgroup is gone.

    Raises BpfError.
    """
    (number,) = CGROUP_LINK_INFO.unpack(info(fd, CGROUP_LINK_INFO.size))
    return number


def programs_on(ifindex: int, attach_type: int) -> list[int]:
    """The ids of the programs attached with tcx, in the order in which they run; empty without such an interface.

    Raises BpfError.
    """
    ids, count = (c_uint32 * PROGRAMS_MAX)(), c_uint32(PROGRAMS_MAX)
    result = library().bpf_prog_query(ifindex, attach_type, 0, None, ids, ctypes.byref(count))
    if result in (-errno.ENOENT, -errno.ENODEV):
        return []
    check(result, f"programs of interface {ifindex}")
    return ids[: count.value]
