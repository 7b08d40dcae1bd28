"""The story of a fleet: three nodes in trouble, and who is killed meanwhile. The hosts are those of the tests."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from fleet import INTERVAL
from hosts import Node, until
from story import DemoError, Story
from troubled_fleet import GAP_MAX, TROUBLE, Epochs, TroubledFleet, fired

from scentd.collect.cgroup import UNIFIED, mounted

PATIENCE = 40.0  # seconds
SAID = {
    "database": "PostgreSQL on db1 is busy, by its exporter",
    "hog": "one application on web1 sends more than its share",
    "attack": "somebody guesses passwords at sshd on login",
}


def tell(story: Story, result: dict[str, Any]) -> None:
    if UNIFIED not in mounted():
        raise DemoError("needs a mounted cgroup v2, by which bytes of an application are counted")
    with tempfile.TemporaryDirectory(prefix="scentd-demo-") as name:
        story.part("0", "Three nodes, a profiler and its standby, three NATS servers, two gateways, a verifier")
        story.say("Each has a namespace and a key of its own; the servers know them by certificates. It takes a while.")
        with TroubledFleet(Path(name)) as troubled:
            fleet, epochs = troubled.fleet, Epochs()
            until(lambda: lease(fleet.p2)["holder"], "the standby has read the lease")
            story.check(
                "one profiler issues, the other stands by",
                lease(fleet.p1)["active"] and not lease(fleet.p2)["active"] and not issued(fleet.p2),
                f"{issued(fleet.p1)} and {issued(fleet.p2)} epochs",
            )
            story.check("all is quiet", not fired(fleet.v), "no policy has fired")
            with troubled.streams() as streams, troubled.trouble():
                tell_trouble(story, troubled)
                result |= tell_killed(story, troubled, epochs)
            tell_totals(story, troubled, epochs, streams)


def tell_trouble(story: Story, troubled: TroubledFleet) -> None:
    fleet = troubled.fleet
    story.part("a", "Three kinds of trouble, each on another node, in one profile")
    until(lambda: fired(fleet.v) == TROUBLE.keys(), "the verifier's policies have seen all three", PATIENCE)
    for policy, what in SAID.items():
        story.check(what, policy in fired(fleet.v), TROUBLE[policy])
    until(lambda: fired(fleet.alloc) == TROUBLE.keys(), "the allocator on another host has seen them, too", PATIENCE)
    same = fired(fleet.alloc) == TROUBLE.keys()
    story.check("an allocator that sees no packet decides the same", same, "by the verifier's views, verified again")
    story.command(fleet.p1.host.argv("scentd", "explain", "--profile", "acme"))
    story.output(fleet.p1.cli("explain", "--profile", "acme").stdout, 18)


def tell_killed(story: Story, troubled: TroubledFleet, epochs: Epochs) -> dict[str, Any]:
    fleet = troubled.fleet
    story.part("b", "kill -9: a broker, then the active profiler")
    epochs.watch(fleet, 3)
    troubled.kill_a_broker()
    epochs.watch(fleet, 15)
    after_broker = max(epochs.gaps)
    troubled.kill_the_active_profiler()
    epochs.watch(fleet, 15)
    gap = max(epochs.gaps)
    took = f"term {lease(fleet.p2)['term']}, {issued(fleet.p2)} epochs"
    story.check("the standby has taken over", lease(fleet.p2)["active"], took)
    story.check(
        f"never longer than {GAP_MAX} s without a new profile (two intervals of {INTERVAL} s, and 9 s)",
        gap <= GAP_MAX,
        f"{after_broker:.1f} s at most with the broker killed, {gap:.1f} s in all",
    )
    return {"gap_s": round(gap, 1)}


def tell_totals(story: Story, troubled: TroubledFleet, epochs: Epochs, streams: list[Any]) -> None:
    story.part("c", "What it cost")
    status = troubled.fleet.v.status()
    lost, sent = sum(len(s.lost) for s in streams), sum(s.sent for s in streams)
    refused = sum(status["rejected"].values())
    story.check("nothing is lost", not lost, f"{lost} of {sent} datagrams of both gateways, IPv4 and IPv6")
    story.check(
        "nothing unscented, nothing refused",
        not refused and not status["absent"],
        f"{status['accepted']} accepted, {status['absent']} unscented, {refused} refused",
    )
    once = epochs.seen == sorted(set(epochs.seen))
    story.check("no epoch twice", once, f"{len(epochs.seen)} epochs, each later than the one before")


def lease(node: Node) -> dict[str, Any]:
    return node.status()["bus"]["lease"] or {"active": False, "holder": "", "term": 0}


def issued(node: Node) -> int:
    return node.status()["networks"][0]["issued"]
