"""Nanoseconds a run of the programs that serve the `ebpf` kind, while real traffic passes, and their size.

The kernel counts run times only while somebody holds a file descriptor that asks for it: nothing is left
switched on, however this ends. A run is a packet, or a large send before its segmentation.
"""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.dataplane_kinds import Kind, inside
from benchmarks.dataplane_load import Length, tcp, udp
from benchmarks.lab import INTERFACE
from scentd.core.offload.coverage import Direction
from scentd.datapath.offload import bpfprog, libbpf, tcx
from scentd.datapath.offload.bpfprog import ProgramInfo

BPF_STATS_RUN_TIME = 0
INSTRUCTION = 8  # bytes
PLACES: tuple[tuple[str, Direction, str], ...] = (("near", "egress", "stamp"), ("far", "ingress", "verify"))
LOADS = {"tcp": tcp, "udp": udp}


def rows(kind: Kind, length: Length) -> list[dict[str, Any]]:
    """Of the stamping and the verifying program, by load and family. Empty where the kernel has no tcx links."""
    made = []
    with counting(), opened(kind) as programs:
        for load, work in LOADS.items():
            for family in (4, 6):
                before = {what: bpfprog.program_info(fd) for what, fd in programs.items()}
                work(kind, family, length)
                for what, fd in programs.items():
                    made.append({"load": load, "family": family, **used(what, before[what], bpfprog.program_info(fd))})
    return made


def used(what: str, before: ProgramInfo, after: ProgramInfo) -> dict[str, Any]:
    runs = after.run_cnt - before.run_cnt
    return {
        "program": what,
        "ns": round((after.run_time_ns - before.run_time_ns) / runs, 1),
        "runs": runs,
        "instructions": after.xlated_prog_len // INSTRUCTION,
        "jited_bytes": after.jited_prog_len,
    }


def worst(programs: list[dict[str, Any]]) -> dict[str, float | None]:
    return {"program_ns": max((row["ns"] for row in programs), default=None)}


@contextmanager
def counting() -> Iterator[None]:
    """The kernel measures each run of each program meanwhile."""
    fd = libbpf.check(libbpf.library().bpf_enable_stats(BPF_STATS_RUN_TIME), "counting run times of BPF programs")
    try:
        yield
    finally:
        os.close(fd)


@contextmanager
def opened(kind: Kind) -> Iterator[dict[str, int]]:
    """File descriptors of the programs on the wire."""
    found: dict[str, int] = {}
    try:
        for end, direction, what in PLACES:
            for number in attached(kind.lab.names[end], direction):
                fd = libbpf.check(libbpf.library().bpf_prog_get_fd_by_id(ctypes.c_uint32(number)), f"program {number}")
                if bpfprog.program_info(fd).name.startswith(f"scent_{what}"):
                    found[what] = fd
                else:
                    os.close(fd)
        yield found
    finally:
        for fd in found.values():
            os.close(fd)


def attached(namespace: str, direction: Direction) -> list[int]:
    return inside(namespace, lambda: bpfprog.programs_on(socket.if_nametoindex(INTERFACE), tcx.TYPES[direction]))
