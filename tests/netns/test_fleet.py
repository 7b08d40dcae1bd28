"""A fleet over NATS: samples of one host, epochs of another, packets of two gateways, and what is killed meanwhile."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta

import pytest
from fleet import INTERVAL, Fleet, lease, network, profile, running
from hosts import until
from steady import steady

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def fleet(tmp_path_factory) -> Iterator[Fleet]:
    with running("ft", tmp_path_factory.mktemp("ft")) as fleet:
        yield fleet


def test_samples_of_one_host_are_stamped_by_others(fleet):
    until(lambda: network(fleet.p1)["issued"] >= 2, "the profiler has samples, and issues")
    assert [n["name"] for n in network(fleet.p1)["nodes"]] == ["c"]
    until(lambda: profile(fleet), "the verifier has the profile by the gateways' beacons")
    assert profile(fleet)["levels"]["memory"] > 0
    for gateway in fleet.gateways:
        counters = gateway.status()["bus"]["counters"]
        assert counters["taken"] >= 1
        with gateway.socket(4) as end, fleet.v.socket(4) as other:
            end.sendto(b"x", other.getsockname())
            assert other.recv(10) == b"x"


def test_what_a_verifier_has_verified_decides_elsewhere(fleet):
    policies = lambda: fleet.alloc.status()["allocation"]["policies"]  # noqa: E731
    until(lambda: policies()[0]["fired_at"], "the allocator acts")
    told = json.loads(fleet.alloc.cli("explain", "acme", "--json").stdout)
    assert "memory=" in told["policies"][0]["reason"]
    [peer] = fleet.alloc.status()["peers"]
    assert (peer["name"], peer["verified"]) == ("acme", True)
    assert peer["profile"]["levels"]["memory"] > 0
    assert "peer acme  key " in fleet.alloc.cli("status").stdout


def test_a_key_that_is_revoked_counts_for_an_allocator_no_more(fleet):
    key = str(fleet.network.public)
    assert fleet.alloc.cli("revoke", key).returncode == 0
    [peer] = fleet.alloc.status()["peers"]
    assert (peer["verified"], len(peer["revoked"]), peer["profile"]) == (False, 1, None)
    before = fleet.alloc.status()["bus"]["counters"].get("wrong_profile", 0)
    until(lambda: fleet.alloc.status()["bus"]["counters"].get("wrong_profile", 0) > before, "what comes is refused")
    assert fleet.alloc.cli("revoke", key, "--undo").returncode == 0
    until(lambda: fleet.alloc.status()["peers"][0]["profile"], "it counts again")


def grown(node, before: dict[str, int]) -> dict[str, int]:
    now = node.status()["bus"]["counters"]
    return {name: now[name] - before.get(name, 0) for name in now if now[name] > before.get(name, 0)}


def test_a_hostile_bus_changes_nothing_and_is_counted(fleet):
    """Somebody has taken the brokers over: he may say and hear everything, but has no host's key."""
    before = fleet.p1.status()["bus"]["counters"], fleet.g1.status()["bus"]["counters"]
    heard: dict[str, list[bytes]] = {"scentd.samples.profiler.c": [], "scentd.outgoing.g1.0": []}

    async def listen(client) -> None:
        for name, messages in heard.items():
            await client.subscribe(name, cb=taking(messages))
        while not all(len(messages) > 1 for messages in heard.values()):
            await asyncio.sleep(0.1)

    def taking(messages):
        async def take(message) -> None:
            messages.append(message.data)

        return take

    async def attack(client) -> None:
        for name, messages in heard.items():
            first = messages[0]
            changed = first[:-1] + bytes((first[-1] ^ 1,))
            stranger = first[:3] + b"?" + first[4:]
            for odd in (b"", b"garbage", bytes(1_000_000), changed, stranger, b"\x09" + first[1:], first, first):
                await client.publish(name, odd)
        # What is for one host is nothing for another.
        await client.publish("scentd.outgoing.g1.0", heard["scentd.samples.profiler.c"][0])
        await client.flush()

    fleet.cluster.run(listen)
    epoch = profile(fleet)["epoch"]
    fleet.cluster.run(attack)
    until(lambda: grown(fleet.p1, before[0]).get("replayed"), "the profiler has seen it")
    until(lambda: profile(fleet)["epoch"] > epoch, "epochs go on")
    counts = grown(fleet.p1, before[0])
    assert (counts["garbage"], counts["version"], counts["unknown_host"]) == (1, 3, 1)
    assert (counts["wrong_key"], counts["replayed"]) == (1, 2)
    counts = grown(fleet.g1, before[1])
    assert (counts["garbage"], counts["version"], counts["unknown_host"]) == (1, 3, 2)
    assert counts["wrong_key"] == 1
    text = fleet.p1.cli("status").stdout
    assert "the active profiler, term " in text
    assert "c: heard of " in text


def test_a_host_hears_only_what_is_for_it(fleet):
    """By the shipped permissions: collectors and verifiers hear nothing, a gateway what is for it."""

    async def listen(client) -> set[str]:
        heard: set[str] = set()

        async def take(message) -> None:
            heard.add(".".join(message.subject.split(".")[:3]))

        for name in ("scentd.>", "scentd.samples.>", "scentd.outgoing.>", "scentd.outgoing.g1.>"):
            with suppress(Exception):  # the connection may be ended for it
                await client.subscribe(name, cb=take)
        await asyncio.sleep(2 * INTERVAL)
        return heard

    assert fleet.cluster.run(listen) >= {"scentd.samples.profiler", "scentd.outgoing.g1", "scentd.outgoing.g2"}
    for node, wanted in ((fleet.collectors[0], set()), (fleet.v, set()), (fleet.g1, {"scentd.outgoing.g1"})):
        assert fleet.cluster.run(listen, node.sections["bus"]) == wanted, node.name


def test_who_joins_later_has_the_last_epoch_at_once(fleet):
    fleet.g2.stop()
    fleet.g2.start()
    joined = time.monotonic()
    until(lambda: fleet.g2.status()["bus"]["counters"].get("taken"), "what was kept")
    assert time.monotonic() - joined < 10
    assert "what was sent before is not known" not in fleet.g2.log.read_text().split("stopped")[-1]


def test_a_bucket_that_is_made_anew_stops_nobody_for_long(fleet):
    async def delete(client) -> None:
        await client.jetstream().delete_key_value("SCENTD")

    term = lease(fleet.p1)["term"]
    until(lambda: lease(fleet.p1)["active"], "it is active")
    fleet.cluster.run(delete)
    issued = network(fleet.p1)["issued"]
    until(lambda: network(fleet.p1)["issued"] > issued + 2, "it goes on")
    assert lease(fleet.p1)["term"] > term
    assert lease(fleet.p1)["active"]


def test_a_certificate_that_has_expired_is_named(fleet):
    certificate, key = fleet.cluster.authority.certify("expired", [], ago=timedelta(hours=3))
    before = fleet.g2.sections["bus"]
    fleet.g2.sections["bus"] = before | {"certificate_file": str(certificate), "certificate_key_file": str(key)}
    fleet.g2.restart()
    assert "NATS servers" in doctor(fleet.g2, "no")
    until(lambda: "certificate" in (fleet.g2.status()["bus"]["why_not"] or ""), "it says why it has no connection")
    assert "see bus.ca_file, bus.certificate_file" in fleet.g2.log.read_text()
    fleet.g2.sections["bus"] = before
    fleet.g2.restart()
    until(lambda: fleet.g2.status()["bus"]["connected"], "with a right one it has")
    assert "1 of 1 answer" in doctor(fleet.g2, "yes")


def doctor(node, state: str) -> str:
    """The row about NATS servers, if it has this state."""
    checks = json.loads(node.cli("doctor", "--json").stdout)["checks"]
    return next(f"{c['name']}: {c['found']}" for c in checks if c["name"] == "NATS servers" and c["ok"] == state)


def test_a_reload_takes_hosts_and_refuses_another_bus(fleet):
    """Which hosts there are is the fleet's daily change; a connection is made at the start."""
    before = fleet.p1.sections["bus"]
    fleet.p1.sections["bus"] = before | {"host": [h for h in before["host"] if h["name"] != "g2"]}
    fleet.p1.reload()
    taken = fleet.g2.status()["bus"]["counters"]["taken"]
    issued = network(fleet.p1)["issued"]
    until(lambda: network(fleet.p1)["issued"] > issued + 1, "the profiler goes on")
    assert fleet.g2.status()["bus"]["counters"]["taken"] <= taken + 1, "nothing is for g2 any more"
    fleet.p1.sections["bus"] = before
    fleet.p1.reload()
    until(lambda: fleet.g2.status()["bus"]["counters"]["taken"] > taken + 1, "and again")
    for name, value in (("url", ["tls://10.9.0.99:4222"]), ("name", "other"), ("timeout", "9s"), ("replicas", 3)):
        fleet.p1.sections["bus"] = before | {name: value}
        status = fleet.p1.reload()
        assert f"bus.{name}: changed; this needs a restart" in fleet.p1.log.read_text()
    assert status["reloads"]["refused"] == 4
    fleet.p1.sections["bus"] = before
    fleet.p1.reload()


def test_no_broker_at_all_for_three_intervals(fleet):
    """Gateways stamp their last profile, nothing is lost, and all comes back by itself."""
    before = fleet.v.status()["absent"]
    epoch = profile(fleet)["epoch"]
    with steady(fleet.g1, fleet.v, 4) as one, steady(fleet.g2, fleet.v, 6) as other:
        fleet.cluster.stop(fleet.brokers[0])
        time.sleep(3 * INTERVAL + 2)
        assert not lease(fleet.p1)["active"], "who cannot renew its lease issues nothing"
        fleet.cluster.start(fleet.brokers[0])
        until(lambda: lease(fleet.p1)["active"], "it has the lease again")
        until(lambda: profile(fleet)["epoch"] > epoch + 3 * INTERVAL, "a new profile has arrived", 30)
    assert not one.lost
    assert not other.lost
    status = fleet.v.status()
    assert (status["absent"], sum(status["rejected"].values())) == (before, 0)
    assert fleet.collectors[0].status()["bus"]["counters"]["no_broker"] > 0


def test_a_site_with_a_server_of_its_own(tmp_path):
    """Collector and one gateway are elsewhere: their server is a leaf of the profiler's."""
    with running("fs", tmp_path, site=("c", "g1", "v")) as fleet:
        until(lambda: profile(fleet), "the verifier has the profile", 40)
        assert {n["name"] for n in network(fleet.p1)["nodes"]} == {"c"}
        until(lambda: fleet.alloc.status()["allocation"]["policies"][0]["fired_at"], "the allocator acts")
        fleet.g1.restart()
        until(
            lambda: fleet.g1.status()["bus"]["counters"].get("taken"), "what was kept in the centre comes to the site"
        )
        assert "not known" not in fleet.g1.log.read_text().split("stopped")[-1]
        assert fleet.g1.status()["bus"]["server"].startswith(fleet.site.ipv4)
