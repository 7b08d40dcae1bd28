"""The line between the daemon and a worker: length-framed msgpack over a socket pair."""

from __future__ import annotations

import socket

import msgspec
from msgspec import Struct

from scentd.core.tables import StampTable, VerifyTable
from scentd.model import Fragment, Outgoing

MESSAGE_MAX = 256 * 1024 * 1024


class WorkerSetup(Struct, frozen=True, tag=True):
    """What a worker needs once."""

    stamp_queue: int
    verify_queue: int
    queue_length: int
    mark_stamped: int
    mark_queued: int
    long_queue: int | None = None  # verifies IPv6 packets that may hold several segments; None: no IPv6
    guard_socket: str = ""


class PathTables(Struct, frozen=True, tag=True):
    """What it works by until the next ones come."""

    stamp: StampTable
    verify: VerifyTable
    epochs_path: str
    mark_verified: int = 0  # for all that the verifier lets in, so that the guard does; 0: nothing is kept closed
    mark_glance: int = 0
    log_level: str = "info"
    forward_lowered: bool = False  # the kernel applies the lowered MTU to forwarded packets, before they are stamped
    stamp_fail_open: bool = False
    verify_fail_open: bool = False
    stamp_overload_open: bool = False
    verify_overload_open: bool = False


class NewEpochs(Struct, frozen=True, tag=True):
    outgoing: dict[int, Outgoing]  # by pair


class BarredFlows(Struct, frozen=True, tag=True):
    """Quarantines at addresses that several peers have: only packets of these pairs are dropped."""

    until: dict[int, dict[str, float]]  # by pair: the Unix time of release of each source prefix


class Ready(Struct, frozen=True, tag=True):
    """The worker has bound its queues."""


class StartFailure(Struct, frozen=True, tag=True):
    """The worker cannot start; it ends after this."""

    error: str


class Fragments(Struct, frozen=True, tag=True):
    fragments: tuple[Fragment, ...]


class WorkerReport(Struct, frozen=True, tag=True):
    """Once a second: totals since the worker's start, and what the daemon needs of pairs.

    Outcomes but "accepted" are told by any pair of their peer.
    """

    counters: dict[str, int]
    of_pairs: tuple[tuple[int, str, int], ...]  # pair, outcome, packets since the last report
    refused_epochs: dict[int, int]  # by pair: of its last packet since then that was refused for its epoch
    sent: tuple[tuple[int, int, int], ...]  # pair, epoch, bits of fragments that left
    nodes: dict[int, list[bytes]]  # source addresses by pair
    mtus: dict[bytes, int] = {}  # path MTUs that routers have told since then, by destination


ToWorker = WorkerSetup | PathTables | NewEpochs | BarredFlows
FromWorker = Ready | StartFailure | Fragments | WorkerReport

_encoder = msgspec.msgpack.Encoder()


def frame(message: ToWorker | FromWorker) -> bytes:
    data = _encoder.encode(message)
    return len(data).to_bytes(4, "big") + data


class MessageReader:
    """Bytes in, messages out; for either end."""

    def __init__(self, kind: type | object) -> None:
        self._decoder = msgspec.msgpack.Decoder(kind)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list:
        """Return the messages that `data` completes. Raises msgspec errors if the other end sends anything else."""
        self._buffer += data
        messages = []
        while len(self._buffer) >= 4:
            size = int.from_bytes(self._buffer[:4], "big")
            if size > MESSAGE_MAX:
                raise ValueError(f"a message of {size} bytes")
            if len(self._buffer) < 4 + size:
                break
            messages.append(self._decoder.decode(self._buffer[4 : 4 + size]))
            del self._buffer[: 4 + size]
        return messages


def pair() -> tuple[socket.socket, socket.socket]:
    """Return (the daemon's end, the worker's end)."""
    daemon_end, worker_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in (daemon_end, worker_end):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * 1024 * 1024)
    return daemon_end, worker_end
