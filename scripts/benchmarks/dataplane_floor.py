"""The kind that no stamper and verifier at tc can be faster than: room is made, written and taken off, nothing else.

`floor.bpf.c` is compiled here; the routes are lowered as scentd lowers them, and nothing else of the host is touched.
"""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

from benchmarks.dataplane_kinds import Kind, inside
from benchmarks.lab import ADDRESS, FAR, INTERFACE, MTU, NEAR, call
from benchmarks.packets import GROWTH
from scentd.core.offload.coverage import Direction
from scentd.datapath.offload import bpfprog, libbpf, tcx
from scentd.wire import ip, layout

SOURCE = Path(__file__).with_name("floor.bpf.c")
PROGRAMS: dict[Direction, str] = {"egress": "floor_grow", "ingress": "floor_shrink"}
NOPS = bytes((1,)) * layout.IPV4_OPTION_LEN


class Floor(Kind):
    name = "floor"

    @staticmethod
    def missing() -> str:
        if shutil.which("clang") is None:
            return "clang is not there to compile its programs: apt-get install clang libbpf-dev"
        return libbpf.available() or ""

    def prepare(self) -> None:
        self.folder.mkdir()
        made = self.folder / "floor.bpf.o"
        include = f"-I/usr/include/{call(['uname', '-m']).strip()}-linux-gnu"
        call(["clang", "-O2", "-g", "-target", "bpf", "-mcpu=v3", include, "-c", str(SOURCE), "-o", str(made)])
        self.object = libbpf.Object(str(made))
        self.object.load()
        self.links: list[int] = []
        for end, other, far in (("near", "far", FAR), ("far", "near", NEAR)):
            inside(self.lab.names[end], self._attach)
            for family in (4, 6):
                to = ADDRESS[family][other].format(1)
                room = f"mtu {MTU - GROWTH[family]}"
                self.lab.ip(end, f"route replace {to} dev {INTERFACE} {room}")
                self.lab.ip(end, f"route replace {far[family]} via {to} dev {INTERFACE} {room}")

    def _attach(self) -> None:
        """In the namespace that this is called in."""
        index = socket.if_nametoindex(INTERFACE)
        for direction, name in PROGRAMS.items():
            self.links.append(bpfprog.link_create(self.object.program_fd(name), index, tcx.TYPES[direction]))

    def close(self) -> None:
        for link in getattr(self, "links", ()):
            os.close(link)  # that detaches it: it is pinned nowhere
        if hasattr(self, "object"):
            self.object.close()

    def genuine(self, packet: bytes) -> bool:
        if packet[0] >> 4 == 4:
            return packet[0] == 0x4E and packet[20:56] == NOPS
        return packet[6] == ip.DESTINATION and packet[41] == layout.IPV6_HEADER_LEN // 8 - 1
