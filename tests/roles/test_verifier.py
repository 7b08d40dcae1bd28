"""The verifier as a role: what a profile says of the network's stampers counts once it is verified, and in order."""

from __future__ import annotations

import pytest

from scentd.bus.local import LocalBus
from scentd.core.allocate.assemble import cut
from scentd.core.pairs import Pairs
from scentd.core.profile.issue import IssuedPair, Issuer, metric_slots
from scentd.kinds import config_from
from scentd.model import Fragment, StatedLag, Statement
from scentd.roles.verifier import VerifierRole
from scentd.wire import keys

US, THEM, ELSE = (keys.identity(bytes((n,)) * 32) for n in (1, 2, 3))
EPOCH = 1_800_000_005
CONFIG = config_from(
    {
        "network": [{"name": "us", "key_file": "us.key", "addresses": ["192.0.2.1"]}],
        "peer": [{"name": "them", "public_key": str(THEM.public), "addresses": ["198.51.100.1"]}],
    }
)


@pytest.fixture
def role() -> tuple[VerifierRole, list[StatedLag]]:
    bus, stated = LocalBus(), []
    bus.subscribe(StatedLag, stated.append)
    made = VerifierRole(bus)
    made.configure(Pairs(CONFIG, {"us": (US,)}, {("us", "them"): 7}))
    return made, stated


def fragments(epoch: int, lag: int, signer: keys.Identity = THEM) -> list[Fragment]:
    """As they come from the packet path, of a profile sealed for us; `signer`: whose signature it has."""
    secret = keys.pair_secret(THEM, US.public)
    peer = IssuedPair("them", "us", THEM, US.public, secret)
    [out] = Issuer(signer, [peer], metric_slots({})).issue(Statement(5, 0.5, {}, frozenset(), lag=lag), epoch)
    key_ids = THEM.public.key_id + US.public.key_id
    return cut(7, epoch, b"".join(out.fragments), (0.5, 0.0), bytes((198, 51, 100, 1)), key_ids)


def test_the_newest_verified_profile_says_the_lag(role):
    verifier, stated = role
    for epoch, lag in ((EPOCH, 20), (EPOCH + 5, 55), (EPOCH + 10, 0)):
        verifier.take_fragments(fragments(epoch, lag))
        assert stated.pop() == StatedLag(7, lag)
    assert stated == []


def test_none_is_taken_of_half_a_profile_of_an_older_one_or_of_another_signer(role):
    verifier, stated = role
    verifier.take_fragments(fragments(EPOCH, 20))
    stated.clear()
    verifier.take_fragments(fragments(EPOCH - 5, 55))
    verifier.take_fragments(fragments(EPOCH + 5, 55)[:9])
    verifier.take_fragments(fragments(EPOCH + 10, 55, signer=ELSE))
    assert verifier.counters["error:signature"] == 1
    assert stated == []


def test_none_beyond_the_most(role):
    verifier, stated = role
    verifier.take_fragments(fragments(EPOCH, 56))
    assert verifier.counters["error:level"] == 1
    assert stated == []
