"""Requests and answers of one byte over TCP, one at a time. Run inside a namespace.

dataplane_echo serve ADDRESS            says "ready", then answers one connection
dataplane_echo ask ADDRESS COUNT        prints JSON: p50 and p99 of the round trips, microseconds
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time

from benchmarks.lab import PORT

WARM_UP = 100  # round trips


def serve(address: str) -> None:
    with socket.create_server((address, PORT), family=family(address)) as listening:
        print("ready", flush=True)
        end, _ = listening.accept()
        with end:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := end.recv(1):
                end.send(data)


def ask(address: str, count: int) -> dict[str, float]:
    trips = []
    with socket.socket(family(address)) as end:
        end.settimeout(10)
        end.connect((address, PORT))
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(WARM_UP + count):
            start = time.perf_counter_ns()
            end.send(b"?")
            end.recv(1)
            trips.append(time.perf_counter_ns() - start)
    trips = sorted(trips[WARM_UP:])
    return {"p50": trips[count // 2] / 1000, "p99": trips[count * 99 // 100] / 1000}


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def main(argv: list[str]) -> None:
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0 if argv[0] == "ask" else -1]})
    if argv[0] == "serve":
        serve(argv[1])
    else:
        print(json.dumps(ask(argv[1], int(argv[2]))))


if __name__ == "__main__":
    main(sys.argv[1:])
