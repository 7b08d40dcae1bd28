"""(b) Real load in the tenant: its profile rises, the policy widens its HTB class, the download gets faster."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from application import download
from ends import START_MBIT, STEP_MBIT, End
from lab import INTERFACE, Lab, wait_for
from story import DemoError, Story

from scentd.collect.cpu import busy_share, parse_stat, read_proc

CALM_SECONDS = 20.0
LOADED_SECONDS = 15.0
DOWNLOAD_SECONDS = 1.5
ATTEMPTS = 4
LOWEST, HIGHEST, ABOVE = 0.6, 0.96, 0.25  # threshold: so far above what the machine does anyway


class Meter:
    """Busy share of this machine since it was made."""

    def __init__(self) -> None:
        self._start = parse_stat(read_proc("stat"))

    def read(self) -> float:
        return busy_share(self._start, parse_stat(read_proc("stat"))) or 0.0


def threshold(busy: float) -> float:
    """The level from which on the tenant counts as loaded, on a machine that is `busy` without it."""
    return round(min(max(LOWEST, busy + ABOVE), HIGHEST), 2)


def tell(story: Story, lab: Lab, tenant: End, service: End, limit: float) -> dict[str, Any]:
    """What goes into the JSON: bandwidth_mbit."""
    quiet = f"a profile with cpu under {limit:.2f}; run it when the machine is less busy"
    cpu = wait_for(quiet, lambda: calm(service, limit), CALM_SECONDS)[0]
    story.say(f"The policy `widen` wants cpu >= {limit:.2f} in two profiles of two. The profile says cpu {cpu:.2f}.")
    argv, before, rate_before = steady_download(lab, service)
    story.command(argv)
    story.output(f"{before:.1f} Mbit/s, through a class of {rate_before:g} Mbit/s")
    story.say("Now every processor gets real work.")
    with busy(story, lab):
        high = wait_for("the profile to rise", lambda: loaded(service, limit), LOADED_SECONDS)[0]
        wait_for("the policy", lambda: widened(service, rate_before), LOADED_SECONDS)
        explain = service.argv("explain", "acme")
        story.command(explain)
        story.output(lab.run(service.host, *explain), lines=6)
    _, after, rate_after = steady_download(lab, service)
    argv = ["tc", "class", "show", "dev", INTERFACE]
    story.command(service.host.argv(*argv))
    story.output(lab.run(service.host, *argv))
    story.check("real load raises the profile", high >= limit > cpu, f"cpu {cpu:.2f} -> {high:.2f}")
    story.check(
        "the policy widens the class",
        rate_after >= rate_before + STEP_MBIT and rate_before >= START_MBIT,
        f"HTB {rate_before:g} -> {rate_after:g} Mbit/s",
    )
    story.check(
        "the tenant's download gets faster",
        fills(before, rate_before) and fills(after, rate_after) and after > before,
        f"{before:.1f} -> {after:.1f} Mbit/s",
    )
    return {"bandwidth_mbit": {"before": round(before, 2), "after": round(after, 2)}}


def steady_download(lab: Lab, service: End) -> tuple[list[str], float, float]:
    """(the command, Mbit/s, Mbit/s of the class) of a download in which the class kept its rate.

    The load of others on this machine is load, too, and widens it when it likes. Raises DemoError.
    """
    for _ in range(ATTEMPTS):
        before = rate(service)
        argv, measured = download(lab, 4, DOWNLOAD_SECONDS)
        if rate(service) == before:
            return argv, measured, before
    raise DemoError(f"the class changed in each of {ATTEMPTS} downloads; run it when the machine is less busy")


def fills(measured: float, class_rate: float) -> bool:
    """Whether a download had the rate of its class; the machine may be slow, but HTB does not let more through."""
    return 0.7 * class_rate < measured < 1.1 * class_rate


def cpu_level(service: End) -> float:
    profile = service.status()["peers"][0]["profile"]
    return profile["levels"].get("cpu", 0.0) if profile else 0.0


def calm(service: End, limit: float) -> list[float]:
    level = cpu_level(service)
    return [level] if level < limit else []


def loaded(service: End, limit: float) -> list[float]:
    level = cpu_level(service)
    return [level] if level >= limit else []


def rate(service: End) -> float:
    """The class of the tenant, Mbit/s."""
    (amount,) = (r["amount"] for r in service.resources("bandwidth") if r["peer"] == "acme")
    return amount / 1e6


def widened(service: End, before: float) -> float:
    now = rate(service)
    return now if now > before else 0.0


@contextlib.contextmanager
def busy(story: Story, lab: Lab) -> Iterator[None]:
    """A process of pure work for each processor, nice: the demo itself must still run."""
    argv = ["nice", "-n", "10", sys.executable, "-c", "while True: pass"]
    count = os.cpu_count() or 1
    story.command(lab.tenant.argv(*argv))
    if count > 1:
        story.output(f"{count} of these")
    workers = [lab.start(lab.tenant, *argv, log="busy.log") for _ in range(count)]
    try:
        yield
    finally:
        for worker in workers:
            lab.stop(worker)
