"""(d) What an attacker on the bridge can do with captured scents: nothing, and each refusal has its reason.

A queue's worker reports its counters once a second, so frames go in batches: item n of a batch is sent 2^n times,
and the growth of a counter, read as bits, says which items it counted.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from application import HTTP_PORT, Application
from ends import INTERVAL, MAX_AGE, End
from frames import Injector, catch, epoch, flipped, forged, from_source
from lab import Host, Lab, wait_for
from story import DemoError, Story

from scentd.wire import layout

BATCH = 10  # 2^10 - 1 frames
BATCH_SECONDS = 3.0
ATTEMPTS = 2  # a stray packet in between spoils the sum
FAMILIES = (4, 6)
REFUSED_SECONDS = 1.0

EXPECTED = {  # by field of bpf/scent_wire.h: first byte, last byte, what a change there may be called
    "magic": (0, 1, {"absent"}),
    "version, flags": (2, 2, {"unsupported-version"}),
    "glance": (3, 3, {"bad-tag"}),
    "key id": (4, 7, {"unknown-key"}),
    "epoch": (8, 11, {"future", "stale", "bad-tag"}),
    "fragment number": (12, 12, {"malformed"}),
    "fragment": (13, 25, {"bad-tag"}),
    "tag": (26, 33, {"bad-tag"}),
}


@dataclass(frozen=True, slots=True)
class Item:
    """A frame, and whether it is IPv4 or 6; `what` names it in the result."""

    what: str
    family: int
    packet: bytes


Souvenirs = dict[int, bytes]  # family -> a scented packet from earlier


def souvenirs(lab: Lab, payload: bytes) -> Souvenirs:
    return {family: catch(lab, family, payload) for family in FAMILIES}


def tell(story: Story, lab: Lab, service: End, application: Application, old: Souvenirs) -> dict[str, Any]:
    with Injector(lab) as injector:
        control(story, lab, application, injector)
        recent = flip_every_byte(story, lab, service, application, injector)
        replay(story, lab, service, application, injector, old, recent)
    without_scent(story, lab)
    return {}


def control(story: Story, lab: Lab, application: Application, injector: Injector) -> None:
    """An unchanged copy on its own flow in its own epoch is taken: a replay like that is for TLS or IPsec to stop."""
    payload = b"attack control"
    for packet in souvenirs(lab, payload).values():
        injector.send(packet)
    with contextlib.suppress(DemoError):  # the check says it
        wait_for("the copies", lambda: application.payloads[payload] >= 2 * len(FAMILIES), 2)
    got = application.payloads[payload]
    story.check(
        "control: the attacker's frames do reach the service host",
        got == 2 * len(FAMILIES),
        f"{got} of {2 * len(FAMILIES)} (sent and copied unchanged within their epoch)",
    )


def flip_every_byte(
    story: Story, lab: Lab, service: End, application: Application, injector: Injector
) -> list[Souvenirs]:
    """Returns the unchanged packets, oldest first."""
    story.say(f"The attacker flips each of the {layout.LEN} bytes in turn, with the tenant's source address.")
    todo = [(family, position) for family in FAMILIES for position in range(layout.LEN)]
    reasons: dict[tuple[int, int], str] = {}
    bases = []
    declined = service.status()["other"]["offload_declined"]
    payload = b"attack flip"
    for start in range(0, len(todo), BATCH):
        bases.append(souvenirs(lab, payload))  # in a new batch a fresh one: what is stale is refused for that
        some = todo[start : start + BATCH]
        items = [Item(f"byte {p}", f, flipped(bases[-1][f], p)) for f, p in some]
        reasons |= dict(zip(some, launch(service, injector, items), strict=True))
    wrong = 0
    for field, (first, last, expected) in EXPECTED.items():
        got = {family: [reasons[family, p] for p in range(first, last + 1)] for family in FAMILIES}
        wrong += sum(r not in expected for family in FAMILIES for r in got[family])
        which = f"byte {first}" if first == last else f"bytes {first}-{last}"
        story.output(f"{which:<12} {field:<16} " + "   ".join(f"IPv{f}: {summary(got[f])}" for f in FAMILIES))
    if service.offloaded():
        declined = service.status()["other"]["offload_declined"] - declined
        story.say(
            f"The program refused them before the host's IP stack, but for {declined} that it left to the queue: "
            "with another magic it is not a scent, but an option that others may have a use for."
        )
    came = application.payloads[payload] - len(bases) * len(FAMILIES)
    story.check(
        f"each of {layout.LEN} bytes flipped, both families: refused for its own reason",
        wrong == 0 and came == 0,
        f"{len(reasons) - wrong} of {len(reasons)} as expected, {came} reached the application",
    )
    return bases


def replay(
    story: Story,
    lab: Lab,
    service: End,
    application: Application,
    injector: Injector,
    old: Souvenirs,
    recent: list[Souvenirs],
) -> None:
    before = application.payloads.copy()
    replayable = wait_for("two newer epochs", lambda: overtaken(service, recent), MAX_AGE)
    fresh = souvenirs(lab, b"attack replay")
    wait_for("the captured packet to grow old", lambda: time.time() > epoch(old[4]) + MAX_AGE + 1, MAX_AGE + 2)
    wanted = {
        "wrong-address": ("replayed from its own address", {f: from_source(fresh[f], lab.attacker) for f in FAMILIES}),
        "replayed-epoch": ("replayed, epochs later", replayable),
        "stale": (f"replayed, older than {MAX_AGE} s", old),
        "unknown-key": ("a right scent of an unknown key", forgeries(lab, service, fresh)),
    }
    items = [Item(reason, f, packets[f]) for reason, (_, packets) in wanted.items() for f in FAMILIES]
    got = dict(zip([(i.what, i.family) for i in items], launch(service, injector, items), strict=True))
    for reason, (what, _) in wanted.items():
        found = [got[reason, f] for f in FAMILIES]
        measured = ", ".join(f"IPv{f}: {got[reason, f]}" for f in FAMILIES)
        story.check(what, found == [reason] * len(FAMILIES), measured)
    came = application.payloads - before
    came[b"attack replay"] -= len(FAMILIES)  # those that were caught came themselves
    story.check("none of it reaches the application", not +came, f"{sum((+came).values())} datagrams")


def forgeries(lab: Lab, service: End, fresh: Souvenirs) -> Souvenirs:
    return {f: forged(fresh[f], lab.attacker, service.public) for f in FAMILIES}


def overtaken(service: End, recent: list[Souvenirs]) -> Souvenirs | None:
    """The newest packets whose epoch two others have followed."""
    highest = service.status()["peers"][0]["highest_epoch"]
    fitting = [s for s in recent if highest - max(map(epoch, s.values())) >= 2 * INTERVAL]
    return fitting[-1] if fitting else None


def counts(service: End) -> dict[str, int]:
    status = service.status()
    return {"absent": status["absent"], **status["rejected"]}


def launch(service: End, injector: Injector, items: Sequence[Item]) -> list[str]:
    """The reason that each item was refused for. Raises DemoError if frames were accepted or lost."""
    frames = (1 << len(items)) - 1
    for _ in range(ATTEMPTS):
        before = counts(service)
        for number, item in enumerate(items):
            injector.send(item.packet, 1 << number)
        end = time.monotonic() + BATCH_SECONDS
        grown: dict[str, int] = {}
        while sum(grown.values()) < frames and time.monotonic() < end:
            time.sleep(0.02)
            grown = {reason: n - before[reason] for reason, n in counts(service).items()}
        if sum(grown.values()) == frames:
            return [next(r for r, n in grown.items() if n >> number & 1) for number in range(len(items))]
    raise DemoError(f"of {frames} frames {sum(grown.values())} were refused: {grown}")


def summary(reasons: list[str]) -> str:
    return ", ".join(reasons) if len(set(reasons)) > 1 else reasons[0]


def without_scent(story: Story, lab: Lab) -> None:
    found = [lab.inside(lab.attacker, connect, lab.service, family) for family in FAMILIES]
    story.check(
        "a connection without a scent is refused",
        all(refused and seconds < REFUSED_SECONDS for refused, seconds in found),
        ", ".join(
            f"IPv{f}: {'refused' if refused else 'NOT refused'} in {seconds * 1000:.1f} ms"
            for f, (refused, seconds) in zip(FAMILIES, found, strict=True)
        ),
    )


def connect(host: Host, family: int) -> tuple[bool, float]:
    """(whether it was refused, seconds)."""
    began = time.monotonic()
    try:
        socket.create_connection((host.address(family), HTTP_PORT), timeout=3).close()
    except ConnectionRefusedError:
        return True, time.monotonic() - began
    except TimeoutError:
        return False, time.monotonic() - began
    return False, time.monotonic() - began
