"""One turn of each load over one kind of path: what it measured, as numbers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from benchmarks.dataplane_kinds import Kind
from benchmarks.lab import LabError, busy

IPERF = "iperf3"
MARGIN = 30.0  # seconds that a turn may take beyond its own
ETH_P = {4: 0x0800, 6: 0x86DD}
SEEN = 100  # round trips whose packets are looked at


@dataclass(frozen=True)
class Length:
    """Of a turn of each load."""

    tcp: int  # seconds; iperf3 knows no others, 0 is for ever
    udp: float  # seconds
    trips: int  # round trips


def tcp(kind: Kind, family: int, length: Length) -> dict[str, float]:
    """Gbit/s that arrived of one stream, its retransmits and machine-wide busy seconds per GB."""
    cores = sorted(os.sched_getaffinity(0))
    with served(kind, IPERF, "-s", "-1", "-B", kind.address(family), "--forceflush", ready="Server listening"):
        argv = [IPERF, "-c", kind.address(family), "-J", "-C", "cubic", "-t", f"{length.tcp}"]
        argv += ["-A", f"{cores[0]},{cores[-1]}"]
        before = busy()
        report = json.loads(asked(kind, *argv, seconds=length.tcp))
        used = busy() - before
    if "error" in report:
        raise LabError(f"{kind.name}: iperf3: {report['error']}")
    received = report["end"]["sum_received"]
    gigabytes = received["bytes"] / 1e9
    return {
        "gbit_s": received["bits_per_second"] / 1e9,
        "retransmits_per_gb": report["end"]["sum_sent"]["retransmits"] / gigabytes,
        "cpu_s_per_gb": used / gigabytes,
    }


def udp(kind: Kind, family: int, length: Length) -> dict[str, float]:
    """Small packets a second that arrived, the share that was lost, the share of the time that the sender had to
    wait for the path, machine-wide busy microseconds per packet."""
    address = kind.address(family)
    with tempfile.NamedTemporaryFile(prefix="scentd-bench-") as counter:
        flood = "benchmarks.dataplane_flood"
        counter.write(bytes(8))
        counter.flush()
        with served(kind, *kind.lab.module(flood), "receive", counter.name, address, ready="ready"):
            before = busy()
            argv = [*kind.lab.module(flood), "send", counter.name, address, f"{length.udp:g}"]
            made = json.loads(asked(kind, *argv, seconds=length.udp))
            used = busy() - before
    if not made["arrived"]:
        raise LabError(f"{kind.name}: no UDP packet arrives over IPv{family}")
    kind.sent += made["sent"]
    kind.arrived += made["arrived"]
    return {
        "pps": made["carried"] / made["seconds"],
        "loss": 1 - made["arrived"] / made["sent"],
        "waited": made["waited"] / made["seconds"],
        "cpu_us_per_packet": used / made["arrived"] * 1e6,
    }


def latency(kind: Kind, family: int, length: Length) -> dict[str, float]:
    """Round trips of one byte over TCP, microseconds."""
    address, echo = kind.address(family), kind.lab.module("benchmarks.dataplane_echo")
    with served(kind, *echo, "serve", address, ready="ready"):
        return json.loads(asked(kind, *echo, "ask", address, str(length.trips), seconds=0))


LOADS: dict[str, Callable[[Kind, int, Length], dict[str, float]]] = {"tcp": tcp, "udp": udp, "latency": latency}


@contextmanager
def served(kind: Kind, *argv: str, ready: str) -> Iterator[None]:
    """The load's far end runs meanwhile."""
    process = kind.lab.start("far", *argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        os.sched_setaffinity(process.pid, {sorted(os.sched_getaffinity(0))[-1]})
        said = ""
        while ready not in said:
            if not (line := process.stdout.readline()):
                raise LabError(f"{kind.name}: {' '.join(argv)}: {said.strip()}")
            said += line
        yield
    finally:
        kind.lab.end(process)


def asked(kind: Kind, *argv: str, seconds: float) -> str:
    """What the load's near end prints."""
    process = kind.lab.start("near", *argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, err = process.communicate(timeout=seconds + MARGIN)
    except subprocess.TimeoutExpired:
        raise LabError(f"{kind.name}: no end of {' '.join(argv)}: the path has stalled") from None
    finally:
        kind.lab.end(process)
    if not out:
        raise LabError(f"{kind.name}: {' '.join(argv)}: {err.strip()}")
    return out


def look(kind: Kind, family: int) -> None:
    """Raise LabError unless each packet on the wire is what the kind claims."""
    seen = 0
    with kind.lab.tap("far") as tap:
        latency(kind, family, Length(0, 0, SEEN))
        with suppress(BlockingIOError):
            while True:
                packet, (_, protocol, direction, *_) = tap.recvfrom(1 << 16)
                # Neighbours and multicast listeners speak of the link, the latter from :: before they have an address.
                link_local = protocol == ETH_P[6] and (packet[8:10] == b"\xfe\x80" or packet[24] == 0xFF)
                if direction == socket.PACKET_OUTGOING or protocol != ETH_P[kind.outer(family)] or link_local:
                    continue
                seen += 1
                if not kind.genuine(packet):
                    raise LabError(
                        f"{kind.name}: a packet of IPv{family} is not of its kind on the wire: {packet.hex()}"
                    )
    if seen < SEEN:
        raise LabError(f"{kind.name}: only {seen} packets of IPv{family} were seen on the wire")
