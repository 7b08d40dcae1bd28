"""The load: bursts of UDP. Run inside a namespace.

    blast udp FAMILY SIZE    SIZE bytes of payload through ordinary sockets, one for each flow
    blast frames FILE        frames from a file (each behind its length, 2 bytes), as they are, on the wire

Each line on standard input is a number of packets to send; "done" is the answer.
"""

from __future__ import annotations

import itertools
import socket
import sys
from contextlib import suppress
from pathlib import Path

from benchmarks.lab import ADDRESS, INTERFACE, PORT

FLOWS = 16
_SO_SNDBUFFORCE = 32
_FREEBIND = {4: (socket.IPPROTO_IP, 15), 6: (socket.IPPROTO_IPV6, 78)}  # an address of a local route will do


def flows(family: int) -> list[tuple[str, str, int]]:
    """(source, destination, source port). NFQUEUE's balance hashes addresses, so flows differ in these, too."""
    ends = ADDRESS[family]
    return [(ends["near"].format(2 + n % 4), ends["far"].format(2 + n // 4), 10000 + n) for n in range(FLOWS)]


def sockets(family: int) -> list[socket.socket]:
    made = []
    for source, destination, port in flows(family):
        one = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
        one.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 8 << 20)  # packets in the queue count against it
        one.setsockopt(*_FREEBIND[family], 1)
        one.bind((source, port))
        one.connect((destination, PORT))
        made.append(one)
    return made


def frames(file: str) -> list[bytes]:
    data = Path(file).read_bytes()
    made, at = [], 0
    while at < len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        made.append(data[at + 2 : end])
        at = end
    return made


def main(argv: list[str]) -> None:
    if argv[0] == "udp":
        payload = bytes(int(argv[2]))
        work = [(one.send, payload) for one in sockets(int(argv[1]))]
    else:
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        wire.bind((INTERFACE, 0))
        work = [(wire.send, frame) for frame in frames(argv[1])]
    endless = itertools.cycle(work)
    for line in sys.stdin:
        for send, data in itertools.islice(endless, int(line)):
            # What a full queue refuses is reported as an error; those packets are simply not part of the burst.
            with suppress(PermissionError, BlockingIOError):
                send(data)
        print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
