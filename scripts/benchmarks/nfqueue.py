"""CPU per packet of a queue process, stamping and verifying, against a loop that only accepts.

Turn by turn the accept-only loop and scentd's worker get the same burst by the same rule: the
process is stopped while the burst fills its queue, then let go, and its time on a processor until
the queue is empty (/proc/PID/schedstat, what the kernel does for it included) is divided by the
packets. The generator is idle then, so it takes nothing from the process that is measured.

Stamping: local packets in mangle OUTPUT, dropped when they reach the other end. Verifying: packets
stamped beforehand, sent as frames, in mangle PREROUTING, for a UDP socket that nobody reads.
`ratio` = accept-only CPU per packet / ours, small UDP: the median of the ratios of neighbouring turns.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks import pure
from benchmarks.lab import HARDWARE, INTERFACE, PORT, Lab, LabError, read
from benchmarks.packets import SIZES, bare, payload
from benchmarks.report import columns, spread
from benchmarks.subject import QUEUE_LENGTH, Party, Product

ROUNDS = 25
ACCEPT_QUEUE, STAMP_QUEUE, VERIFY_QUEUE = 100, 200, 300
GOALS = {"stamp_ipv4": 0.68, "stamp_ipv6": 0.78, "verify_ipv4": 0.65, "verify_ipv6": 0.75}
GOAL_TWO_QUEUES = 1.7
BURST = QUEUE_LENGTH - 96  # packets


def run(rounds: int, quick: bool) -> dict[str, Any]:
    """All rows and ratios. Raises LabError."""
    packets = 500 if quick else BURST
    cores = sorted(os.sched_getaffinity(0))
    rows: list[dict[str, Any]] = []
    with Party() as party, Lab() as lab:
        for what in ("stamp", "verify"):
            with served(lab, party, what, cores) as (accept, product):
                for family in (4, 6):
                    for size in SIZES:
                        rows.append(compare(lab, accept, product, (what, family, size), rounds, packets))
        two = two_queues(lab, party, rounds, packets, cores)
        rows += pure.rows(party, rounds, 0.01 if quick else 0.05)
    small = [r for r in rows if r["size"] == "small" and "ratio" in r]
    return {
        "benchmark": "nfqueue",
        "quick": quick,
        "rounds": rounds,
        "cores": len(cores),
        "rows": rows,
        "two_queues": two,
        "ratio": {f"{r['what']}_ipv{r['family']}": r["ratio"]["median"] for r in small},
        "goals": GOALS | {"two_queues": GOAL_TWO_QUEUES},
    }


@contextmanager
def served(lab: Lab, party: Party, what: str, cores: Sequence[int]) -> Iterator[tuple[int, Product]]:
    """The accept-only process's id and the product, both bound and on the last core."""
    end = "near" if what == "stamp" else "far"
    accept = lab.python(end, "benchmarks.accept_only", str(ACCEPT_QUEUE), str(QUEUE_LENGTH), stdout=subprocess.PIPE)
    assert accept.stdout is not None
    if accept.stdout.readline().strip() != b"ready":
        raise LabError("the accept-only loop did not start; is netfilterqueue installed?")
    product = Product(lab, end, party, STAMP_QUEUE, VERIFY_QUEUE)
    for pid in (accept.pid, product.process.pid):
        os.sched_setaffinity(pid, {cores[-1]})
    sink = lab.python("far", "benchmarks.sink", stdout=subprocess.PIPE)
    assert sink.stdout is not None
    sink.stdout.readline()
    try:
        yield accept.pid, product
        time.sleep(1.2)  # the worker counts once a second
        product.check("stamped" if what == "stamp" else "accepted")
    finally:
        product.close()
        for process in (accept, sink):
            process.kill()
            process.communicate()


def compare(
    lab: Lab, accept: int, product: Product, subject: tuple[str, int, str], rounds: int, packets: int
) -> dict[str, Any]:
    """A row: both processes in turns, the first of a round now one, now the other."""
    what, family, size = subject
    kinds = [
        ("accept", accept, ACCEPT_QUEUE),
        ("ours", product.process.pid, product.stamp_queue if what == "stamp" else product.verify_queue),
    ]
    turns: dict[str, list[dict[str, float]]] = {"accept": [], "ours": []}
    product.new_epoch()
    with generator(lab, product.party, *subject) as send:
        for n in range(rounds + 1):
            for kind, pid, queue in kinds if n % 2 else kinds[::-1]:
                steer(lab, what, family, f"--queue-num {queue}")
                turns[kind].append(burst([pid], [queue], lambda: send(packets)))
    made: dict[str, Any] = {"what": what, "family": family, "size": size, "payload": payload(family, size)}
    for kind, measured in turns.items():
        del measured[0]  # the first round warms up
        made[kind] = {key: spread([m[key] for m in measured]) for key in ("us", "pps", "elsewhere")}
    made["ratio"] = spread([a["us"] / o["us"] for a, o in zip(turns["accept"], turns["ours"], strict=True)])
    made["ratio_of_medians"] = round(made["accept"]["us"]["median"] / made["ours"]["us"]["median"], 3)
    return made


def steer(lab: Lab, what: str, family: int, queue: str) -> None:
    """The one rule: the load's packets to a queue. What was stamped is dropped where it arrives."""
    rule = f"-p udp --dport {PORT} -j NFQUEUE {queue}"
    lab.rules("near", family, "mangle", [f"-A OUTPUT -o {INTERFACE} {rule}"] if what == "stamp" else [])
    lab.rules("far", family, "raw", [f"-A PREROUTING -i {INTERFACE} -j DROP"] if what == "stamp" else [])
    lab.rules("far", family, "mangle", [f"-A PREROUTING -i {INTERFACE} {rule}"] if what == "verify" else [])


@contextmanager
def generator(lab: Lab, party: Party, what: str, family: int, size: str) -> Iterator[Callable[[int], None]]:
    """Sends so many packets when called. For verifying they are stamped here, with a new epoch."""
    argv = ["udp", str(family), str(payload(family, size))]
    if what == "verify":
        file = Path(party.folder.name, "frames")
        ether = b"".join(bytes.fromhex(HARDWARE[e].replace(":", "")) for e in ("far", "near"))
        ether += b"\x08\x00" if family == 4 else b"\x86\xdd"
        stamped = party.stamped(bare(family, size))
        file.write_bytes(b"".join(len(ether + p).to_bytes(2, "big") + ether + p for p in stamped))
        argv = ["frames", str(file)]
    process = lab.python("near", "benchmarks.blast", *argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    asks, answers = process.stdin, process.stdout

    def send(packets: int) -> None:
        asks.write(f"{packets}\n")
        asks.flush()
        if answers.readline() != "done\n":
            raise LabError("the load generator ended early")

    try:
        yield send
    finally:
        with suppress(BrokenPipeError):
            process.communicate(timeout=10)


def burst(pids: Sequence[int], queues: Sequence[int], fill: Callable[[], None]) -> dict[str, float]:
    """Fill the queues of stopped processes, let them go and measure until all are empty.

    `elsewhere` is the share of one core that other processes used meanwhile.
    """
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        fill()
        before = read(pids, queues)
        if min(before.waiting) == 0:
            raise LabError(f"a queue got nothing of the burst ({before.waiting}): do rules and load fit together?")
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    start = time.monotonic()
    walls: dict[int, float] = {}
    while len(walls) < len(pids):
        time.sleep(0.001)
        now = read(pids, queues)
        for n, waiting in enumerate(now.waiting):
            if waiting == 0:
                walls.setdefault(n, now.at - start)
        if now.at > start + 10:
            raise LabError(f"a queue was not emptied: {now.waiting} packets are left")
    cpu = [b - a for a, b in zip(before.cpu, now.cpu, strict=True)]
    return {
        "us": sum(cpu) / sum(before.waiting) * 1e6,
        # Each queue by its own time: the kernel's hash does not fill them evenly.
        "pps": sum(before.waiting[n] / wall for n, wall in walls.items()),
        "per_cpu_second": sum(w / c for w, c in zip(before.waiting, cpu, strict=True)),
        "elsewhere": max(0.0, (now.machine - before.machine - sum(cpu)) / (now.at - before.at)),
    }


def two_queues(lab: Lab, party: Party, rounds: int, packets: int, cores: Sequence[int]) -> dict[str, Any]:
    """One queue and process against two with --queue-balance, each on a core of its own, stamping small IPv4.

    `per_cpu_second` is what they would do were the cores theirs alone: on a busy machine it is the better number.
    """
    products = [Product(lab, "near", party, STAMP_QUEUE + n, VERIFY_QUEUE + n) for n in (0, 1)]
    targets = {1: f"--queue-num {STAMP_QUEUE}", 2: f"--queue-balance {STAMP_QUEUE}:{STAMP_QUEUE + 1}"}
    results: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    try:
        for n, product in enumerate(products):
            os.sched_setaffinity(product.process.pid, {cores[-1 - n % len(cores)]})
            product.new_epoch()
        with generator(lab, party, "stamp", 4, "small") as send:
            for _ in range(rounds + 1):
                for count, target in targets.items():
                    steer(lab, "stamp", 4, target)
                    used = products[:count]
                    pids, queues = [p.process.pid for p in used], [p.stamp_queue for p in used]
                    results[count].append(burst(pids, queues, lambda n=count: send(n * packets * 3 // 4)))
    finally:
        for product in products:
            product.close()
    made: dict[str, Any] = {"cores": min(2, len(cores))}
    for key in ("pps", "per_cpu_second"):
        one, two = ([m[key] for m in results[count][1:]] for count in (1, 2))
        made[key] = {"one": spread(one), "two": spread(two)}
        made[key]["ratio"] = spread([b / a for a, b in zip(one, two, strict=True)])
    return made


def table(result: dict[str, Any]) -> str:
    """For people."""
    lines = [("", "accept us", "ours us", "ratio", "min..max", "accept pps", "ours pps", "elsewhere")]
    for r in result["rows"]:
        name = f"{r['what']} ipv{r['family']} {r['size']}"
        if "ratio" not in r:
            lines.append((f"{name}, Python alone", "", f"{r['us']['median']:.2f}", "", "", "", "", ""))
            continue
        a, o, ratio = r["accept"], r["ours"], r["ratio"]
        numbers = f"{a['us']['median']:.2f}", f"{o['us']['median']:.2f}", f"{ratio['median']:.3f}"
        span = f"{ratio['min']:.2f}..{ratio['max']:.2f}"
        rates = f"{a['pps']['median']:.0f}", f"{o['pps']['median']:.0f}", f"{o['elsewhere']['median']:.0%}"
        lines.append((name, *numbers, span, *rates))
    text = columns(lines)
    for key in ("pps", "per_cpu_second"):
        one, two, ratio = (result["two_queues"][key][k]["median"] for k in ("one", "two", "ratio"))
        text += f"\ntwo queues, {key}: {one:.0f} -> {two:.0f}, {ratio:.2f} x (goal {GOAL_TWO_QUEUES})"
    for key, value in result["ratio"].items():
        text += f"\n{key}: {value:.2f} (goal {GOALS[key]})"
    return text + f"\nmedians of {result['rounds']} rounds; elsewhere: share of a core that others used meanwhile"
