"""The kind that no stamper and verifier at tc can be faster than: room is made, written and taken off, nothing else.

`floor.bpf.c` is compiled here; the routes are lowered as scentd lowers them, and nothing else of the host is touched.
"""

from __future__ import annotations

import shutil
import socket
import threading
from pathlib import Path

from pyroute2 import netns

from benchmarks.dataplane_kinds import Kind
from benchmarks.lab import ADDRESS, FAR, INTERFACE, MTU, NEAR, LabError, call
from benchmarks.packets import GROWTH
from scentd.datapath import bpfprog, libbpf, tcx
from scentd.errors import HostError
from scentd.wire import ip, layout

SOURCE = Path(__file__).with_name("floor.bpf.c")
PROGRAMS: dict[bpfprog.Direction, str] = {"egress": "floor_grow", "ingress": "floor_shrink"}
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
        for end, other, far in (("near", "far", FAR), ("far", "near", NEAR)):
            self._attach(end)
            for family in (4, 6):
                to = ADDRESS[family][other].format(1)
                room = f"mtu {MTU - GROWTH[family]}"
                self.lab.ip(end, f"route replace {to} dev {INTERFACE} {room}")
                self.lab.ip(end, f"route replace {far[family]} via {to} dev {INTERFACE} {room}")

    def _attach(self, end: str) -> None:
        """The links go with the namespace, as their pins are nowhere."""
        failed: list[HostError] = []

        def inside() -> None:
            netns.setns(self.lab.names[end])
            try:
                for direction, name in PROGRAMS.items():
                    index = socket.if_nametoindex(INTERFACE)
                    self.links.append(bpfprog.link_create(self.object.program_fd(name), index, tcx.TYPES[direction]))
            except HostError as error:
                failed.append(error)

        self.links: list[int] = getattr(self, "links", [])
        thread = threading.Thread(target=inside)  # setns(2) moves the calling thread alone
        thread.start()
        thread.join()
        if failed:
            raise LabError(f"floor: {failed[0]}")

    def close(self) -> None:
        for link in getattr(self, "links", ()):
            bpfprog.link_detach(link)
        if hasattr(self, "object"):
            self.object.close()

    def genuine(self, packet: bytes) -> bool:
        if packet[0] >> 4 == 4:
            return packet[0] == 0x4E and packet[20:56] == NOPS
        return packet[6] == ip.DESTINATION and packet[41] == layout.IPV6_HEADER_LEN // 8 - 1
