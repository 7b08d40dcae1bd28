"""How many flows of beacons reach every verifier, and where they go. netns/test_anycast.py sends them."""

from __future__ import annotations

import random

import pytest

from scentd.config.sections import Config, Network, Peer
from scentd.datapath.beacon import MISSED, flows_to_reach, peers_without_endpoint


def test_one_verifier_needs_one_flow():
    assert flows_to_reach(1) == 1


@pytest.mark.parametrize("verifiers", range(2, 17))
def test_flows_miss_a_verifier_as_rarely_as_is_promised(verifiers):
    """And one flow fewer would not do."""
    flows = flows_to_reach(verifiers)
    assert verifiers * (1 - 1 / verifiers) ** flows <= MISSED < verifiers * (1 - 1 / verifiers) ** (flows - 1)


def test_drawn_flows_miss_one_as_rarely():
    rng = random.Random(5)  # noqa: S311 - the same draws each time
    rounds = [{rng.randrange(4) for _ in range(flows_to_reach(4))} for _ in range(20_000)]
    assert sum(len(reached) < 4 for reached in rounds) <= 2 * MISSED * len(rounds)


def test_the_specification_has_the_same_numbers():
    assert [flows_to_reach(n) for n in (2, 3, 4, 8, 16)] == [11, 20, 29, 68, 150]


def test_an_address_of_each_verifier_is_enough():
    prefixes = {"name": "p", "public_key": "", "addresses": ["192.0.2.0/24"]}
    peers = [Peer(**prefixes), Peer(**prefixes, verifier_endpoint=["192.0.2.11", "192.0.2.12"])]
    config = Config(network=[Network(name="n", stamp=True)], peer=peers)
    assert peers_without_endpoint(config) == peers[:1]
