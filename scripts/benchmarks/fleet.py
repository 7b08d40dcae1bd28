"""From telemetry to the wire: how long a change and an alarm take, and what a network costs an interval, by part.

    near ---- wire ---- far        near signs for many networks, each with a Prometheus page and an EVE socket

A change is on the wire when a packet's glance says it. far only looks: it has the pairs' keys and no daemon.
Processor time is that of each part alone, for one network and one interval.
"""

from __future__ import annotations

import itertools
import json
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from pyroute2 import netns

from benchmarks import fleet_parts
from benchmarks.dataplane_daemons import toml
from benchmarks.interfaces import Sender, bpf_folder
from benchmarks.lab import ADDRESS, PORT, Lab, LabError
from benchmarks.report import columns
from scentd.state import key_files
from scentd.wire import ip, keys, layout, tag

ROUNDS = 20
NETWORKS = 10
INTERVAL = 5  # seconds
PATIENCE = 5 * INTERVAL
PAUSE = 0.001  # seconds between two datagrams
PART_ROUNDS = 9
HOLD = 1  # seconds that an event lasts
QUIET, BUSY = 0.1, 0.9
ALERT = {"event_type": "alert", "alert": {"severity": 1, "category": "A Network Trojan was detected"}}
GOALS = {"change_p99_s": INTERVAL + 0.5, "alarm_p99_ms": 50.0, "alarm_over_nats_p99_ms": 100.0}


def inside(name: str, function: Callable[[], Any]) -> Any:
    """The function's result in a namespace."""
    box: list[Any] = []

    def run() -> None:
        netns.setns(name)
        box.append(function())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return box[0]


class Pages(HTTPServer):
    """A Prometheus page for each network, at one end: `values` are their loads."""

    def __init__(self, lab: Lab, number: int, end: str = "near") -> None:
        self.values = [QUIET] * number
        values = self.values

        class Page(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = f"load {values[int(self.path[1:])]}\n".encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Page, bind_and_activate=False)
        self.socket = inside(lab.names[end], lambda: socket.create_server(("127.0.0.1", 0)))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Fleet(Sender):
    """`scentd run` at near, for many networks."""

    def __init__(self, lab: Lab, folder: Path, pages: Pages) -> None:
        self.pages = pages
        self.addresses = [ADDRESS[4]["near"].format(n + 1) for n in range(len(pages.values))]
        super().__init__(lab, folder)

    def write(self, pins: Path) -> None:
        sections = self.sections(pins)
        sections["network"] = [self.network(n) for n in range(len(self.addresses))]
        self.config.write_text("".join(f"{key} = {toml(value)}\n" for key, value in sections.items()))

    def network(self, n: int) -> dict[str, Any]:
        key_file = self.folder / f"n{n}"
        key_file.touch(0o600)
        key_file.write_text(key_files.generate() + "\n")
        page = {"kind": "prometheus", "url": f"http://127.0.0.1:{self.pages.port}/{n}", "series": "load", "full": 1.0}
        events = {"kind": "eve", "socket": str(self.eve(n)), "hold": f"{HOLD}s"}
        network = {"name": f"n{n}", "key_file": str(key_file), "addresses": [self.addresses[n]]}
        # The overall score is the load alone, so that the glance says it.
        return network | {"interval": f"{INTERVAL}s", "source": [page, events], "weights": {"threat": 0.0}}

    def eve(self, n: int) -> Path:
        return self.folder / f"eve{n}"

    def alarm(self, n: int) -> None:
        with socket.socket(socket.AF_UNIX) as end:
            end.connect(str(self.eve(n)))
            end.sendall(json.dumps(ALERT | {"src_ip": self.addresses[n]}).encode() + b"\n")

    def said(self) -> str:
        return f"its log ends:\n{self.log.read_text()[-2000:]}"


class Watch:
    """Looks at far at the glances of the packets that arrive."""

    def __init__(self, lab: Lab, fleet: Fleet) -> None:
        self.fleet = fleet
        receiver = key_files.load(str(fleet.folder / "far"))
        senders = [key_files.load(str(fleet.folder / f"n{n}")).public for n in range(len(fleet.addresses))]
        self.pairs = {
            sender.key_id: (n, sender, receiver.public, keys.pair_secret(receiver, sender))
            for n, sender in enumerate(senders)
        }
        self.keys: dict[tuple[bytes, int], bytes] = {}
        self.seen: dict[int, tuple[int, int, float]] = {}  # epoch, glance, when it was first seen
        self.heard = threading.Condition()
        self.end = inside(lab.names["far"], lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
        threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        while True:
            packet = self.end.recv(2048)[14:]
            parsed = ip.parse(packet)
            if parsed.scent_at and not parsed.malformed:
                self.take(packet[parsed.scent_at : parsed.scent_at + layout.LEN], time.monotonic())

    def take(self, scent: bytes, now: float) -> None:
        _, _, masked, key_id, epoch, *_ = layout.SCENT.unpack(scent)
        n, sender, receiver, secret = self.pairs[key_id]
        if n in self.seen and self.seen[n][0] >= epoch:
            return
        period = keys.period_of(epoch)
        if (key_id, period) not in self.keys:
            self.keys[key_id, period] = keys.direction_keys(secret, sender, receiver, period).glance
        glance = masked ^ tag.glance_mask(self.keys[key_id, period], scent)
        with self.heard:
            self.seen[n] = epoch, glance, now
            self.heard.notify_all()

    def until(self, n: int, is_it: Callable[[float, float], bool], since: float) -> float:
        """Seconds from `since` until a new epoch of the network says it. Raises LabError."""

        def says() -> bool:
            return n in self.seen and self.seen[n][2] >= since and is_it(*tag.glance_levels(self.seen[n][1]))

        with self.heard:
            if not self.heard.wait_for(says, PATIENCE):
                raise LabError(f"network n{n} does not say within {PATIENCE} s what it should; {self.fleet.said()}")
            return self.seen[n][2] - since

    def age(self, n: int) -> float:
        """Seconds since the network's newest epoch."""
        return time.monotonic() - self.seen[n][2] if n in self.seen else 0.0


@contextmanager
def traffic(lab: Lab, addresses: list[str]) -> Iterator[None]:
    """Datagrams of all networks in turn, from near to far."""

    def socket_of(address: str) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((address, 0))
        return made

    ends = inside(lab.names["near"], lambda: [socket_of(a) for a in addresses])
    over = threading.Event()

    def run() -> None:
        number = 0
        while not over.wait(PAUSE):
            ends[number % len(ends)].sendto(b"?", (ADDRESS[4]["far"].format(1), PORT))
            number += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        for end in ends:
            end.close()


def changes(fleet: Fleet, watch: Watch, rounds: int) -> list[float]:
    """Seconds from a page that says something else until a packet does."""
    taken = []
    moments = evenly()
    for _ in range(rounds):
        since = []
        for n, value in enumerate(fleet.pages.values):
            time.sleep(next(moments) * INTERVAL / len(fleet.pages.values))
            fleet.pages.values[n] = QUIET if value == BUSY else BUSY
            since.append(time.monotonic())
        for n, at in enumerate(since):
            busy = fleet.pages.values[n] == BUSY
            taken.append(watch.until(n, lambda load, _, busy=busy: (load > 0.5) == busy, at))
    return taken


def alarms(fleet: Fleet, watch: Watch, rounds: int) -> dict[bool, list[float]]:
    """Seconds from an alert on the socket until a packet's threat; by whether an epoch had just begun.

    Its own epoch may be two seconds ahead of the clock, so an alarm within a second of another one waits.
    """
    taken: dict[bool, list[float]] = {False: [], True: []}
    moments = evenly()
    for _ in range(rounds):
        for n in range(len(fleet.addresses)):
            time.sleep(next(moments) * 0.3)
            just_begun = watch.age(n) < 1.1
            since = time.monotonic()
            fleet.alarm(n)
            taken[just_begun].append(watch.until(n, lambda _, threat: threat > 0.5, since))
        for n in range(len(fleet.addresses)):
            watch.until(n, lambda _, threat: threat == 0.0, 0.0)
    return taken


def evenly() -> Iterator[float]:
    """Numbers from 0 to 1 that fill it evenly, in no order: nothing falls into step with the intervals."""
    return ((n * 0.618034) % 1 for n in itertools.count())


def percentiles(values: list[float], scale: float = 1.0) -> dict[str, float]:
    if len(values) < 2:
        return {"number": len(values)}
    cut = statistics.quantiles(values, n=100, method="inclusive")
    return {"number": len(values), **{f"p{p}": float(f"{cut[p - 1] * scale:.4g}") for p in (50, 99)}}


def run(rounds: int, quick: bool) -> dict[str, Any]:
    from benchmarks.fleet_bus import BusFleet, BusLab

    networks = 2 if quick else NETWORKS
    rows, cost = [], []
    for shape, lab_kind, kind, end in (("one host", Lab, Fleet, "near"), ("NATS", BusLab, BusFleet, "collector")):
        with ExitStack() as stack:
            lab = stack.enter_context(lab_kind())
            folder, bpf = stack.enter_context(bpf_folder())
            pages = Pages(lab, networks, end)
            stack.callback(pages.shutdown)
            fleet = kind(lab, folder, pages)
            fleet.write(bpf)
            fleet.start(1)
            rows += [{"shape": shape, **row} for row in delays(lab, fleet, rounds)]
            if isinstance(fleet, BusFleet):
                cost = fleet.cost(INTERVAL * (1 if quick else 6))
            fleet.stop()
    parts = fleet_parts.rows(1 if quick else PART_ROUNDS, 0.02 if quick else 0.3)
    head = {"benchmark": "fleet", "quick": quick, "rounds": rounds, "interval": INTERVAL}
    return {**head, "rows": rows, "cost": cost, "parts": parts, "goals": GOALS}


def delays(lab: Lab, fleet: Fleet, rounds: int) -> list[dict[str, Any]]:
    watch = Watch(lab, fleet)
    with traffic(lab, fleet.addresses):
        changed = changes(fleet, watch, rounds)
        raised = alarms(fleet, watch, rounds)
    return [
        {"what": "change to packet, s", **percentiles(changed)},
        {"what": "alarm to packet, ms", **percentiles(raised[False], 1e3)},
        {"what": "alarm within a second of an epoch, ms", **percentiles(raised[True], 1e3)},
    ]


def table(result: dict[str, Any]) -> str:
    """For people."""
    head = (f"interval {result['interval']} s", "number", "p50", "p99")
    lines = [
        (f"{row['shape']}: {row['what']}", *(f"{row.get(k, float('nan')):.4g}" for k in head[1:]))
        for row in result["rows"]
    ]
    cost = [(row["role"], str(row["us"]), str(row["bytes"])) for row in result["cost"]]
    nodes = sorted({row["nodes"] for row in result["parts"]})
    us = {(row["part"], row["nodes"]): f"{row['us']['median']:.3g}" for row in result["parts"]}
    parts = [(part, *(us[part, n] for n in nodes)) for part in dict.fromkeys(part for part, _ in us)]
    tables = (
        [head, *lines],
        [("with NATS, a network and interval", "us", "bytes sent"), *cost],
        [("us an interval, nodes", *map(str, nodes)), *parts],
    )
    return "\n\n".join(map(columns, tables))
