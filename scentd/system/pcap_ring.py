"""A process that writes the copies of a group of NFLOG into a ring of pcap files: NAME-0.pcap, NAME-1.pcap ...

Its own process, because a thread would take the interpreter from the daemon's loop just when much arrives. It begins
with the file behind the newest one, and ends when its standard input does, which the daemon holds: so it ends with the
daemon, however that ends. On its standard output it says READY, or why not.
"""

from __future__ import annotations

import errno
import os
import re
import select
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from struct import Struct

from scentd.system import nflog
from scentd.system.nflog import Copy

READY, TAKEN = "ready", "taken"
HEAD = Struct("=IHHiIII")  # magic, version, .., time zone, accuracy, snapshot length, link type
RECORD = Struct("=IIII")  # seconds, microseconds, bytes here, bytes of the packet
MAGIC, LINKTYPE_RAW = 0xA1B2C3D4, 101  # packets begin with their IP header
LOST_EVERY = 60.0  # seconds between two messages about lost copies


class PcapRing:
    """Writes at most `files` files of `size` bytes each. Raises OSError."""

    def __init__(self, directory: Path, name: str, files: int, size: int, length: int) -> None:
        self._directory, self._name, self._files, self._size = directory, name, files, size
        self._head = HEAD.pack(MAGIC, 2, 4, 0, 0, length, LINKTYPE_RAW)
        there = self._existing()
        for number in there.keys() - range(files):
            there.pop(number).unlink(missing_ok=True)
        newest = max(there, key=lambda number: there[number].stat().st_mtime_ns, default=-1)
        self._number, self._written = newest, 0
        self._file = -1
        self._next()

    def write(self, found: Iterable[Copy]) -> None:
        pending: list[bytes] = []
        waiting = 0
        for at, packet in found:
            seconds, microseconds = divmod(round((at or time.time()) * 1e6), 1_000_000)
            record = RECORD.pack(seconds, microseconds, len(packet), max(len(packet), stated_length(packet))) + packet
            if self._written + waiting + len(record) > self._size:
                self._append(b"".join(pending))
                pending, waiting = [], 0
                self._next()
            pending.append(record)
            waiting += len(record)
        self._append(b"".join(pending))

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _append(self, data: bytes) -> None:
        self._written += len(data)
        while data:
            data = data[os.write(self._file, data) :]

    def _next(self) -> None:
        self.close()
        self._number = (self._number + 1) % self._files
        path = self._directory / f"{self._name}-{self._number}.pcap"
        path.unlink(missing_ok=True)  # whoever reads the old one keeps it
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._written = 0
        self._append(self._head)

    def _existing(self) -> dict[int, Path]:
        pattern = re.compile(rf"{re.escape(self._name)}-(\d+)\.pcap")
        found = ((pattern.fullmatch(path.name), path) for path in self._directory.iterdir())
        return {int(match[1]): path for match, path in found if match}


def stated_length(packet: bytes) -> int:
    """The packet's length by its IP header; 0 if that does not tell."""
    if packet[:1] and packet[0] >> 4 == 4:
        return int.from_bytes(packet[2:4], "big")
    payload = int.from_bytes(packet[4:6], "big")
    return payload + 40 if payload else 0


def main(group: int, length: int, directory: Path, name: str, files: int, size: int) -> None:
    """Run until standard input ends. Raises OSError."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal tells the daemon, too, and that ends this process
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with nflog.opened(group, length) as end:
        ring = PcapRing(directory, name, files, size, length)
        print(READY, flush=True)
        lost_at = float("-inf")
        while True:
            readable, _, _ = select.select([end.fileno(), 0], [], [])
            if 0 in readable and not os.read(0, 1):
                return ring.close()
            if end.fileno() not in readable:
                continue
            try:
                data = end.recv(nflog.READ)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                if time.monotonic() - lost_at > LOST_EVERY:
                    lost_at = time.monotonic()
                    print(f"resource {name}: copies of packets come faster than they are written", file=sys.stderr)
                continue
            ring.write(nflog.copies(data))


if __name__ == "__main__":
    group, length, directory, name, files, size = sys.argv[1:]
    try:
        main(int(group), int(length), Path(directory), name, int(files), int(size))
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        taken = error.errno == errno.EPERM and not error.filename
        print(TAKEN if taken else f"{error.strerror}{where}", flush=True)
        print(f"resource {name}: no more captured: {error}", file=sys.stderr)
        sys.exit(1)
