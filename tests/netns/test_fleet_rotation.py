"""The key of a network is changed in a fleet: profiler and standby have it, gateways, verifier and allocator do not.

The steps are those of systemd/README.md; every packet of both gateways is accepted in each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from fleet import Fleet, lease, network, profile, running
from hosts import Node, start, until
from steady import Steady, steady
from test_rotation import NewKey

pytestmark = pytest.mark.netns


@pytest.fixture
def fleet(tmp_path) -> Iterator[Fleet]:
    with running("fr", tmp_path) as fleet:
        until(lambda: profile(fleet), "the verifier has a profile")
        until(lambda: fleet.alloc.status()["peers"][0]["profile"], "and so has the allocator")
        start(fleet.p2)
        yield fleet


@pytest.fixture
def streams(fleet) -> Iterator[list[Steady]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(steady(g, fleet.v, version)) for g, version in zip(fleet.gateways, (4, 6), strict=True)
        ]


def own(node: Node) -> dict:
    """The [[network]] of a host's configuration."""
    return node.sections["network"][0]


def goes_on(fleet: Fleet) -> None:
    """A new profile has come by both gateways."""
    epoch = profile(fleet)["epoch"]
    until(lambda: profile(fleet)["epoch"] > epoch, "epochs go on")
    for gateway in fleet.gateways:
        taken = gateway.status()["bus"]["counters"]["taken"]
        until(lambda g=gateway, t=taken: g.status()["bus"]["counters"]["taken"] > t, f"{gateway.name} has them, too")
        assert gateway.status()["bus"]["counters"].get("wrong_profile", 0) == 0


def accept_for_both(fleet: Fleet, new: NewKey) -> None:
    for profiler in fleet.profilers:
        own(profiler)["next_key_file"] = str(new.path)
        assert profiler.reload()["networks"][0]["next_key_id"] == new.id


def know_both(fleet: Fleet, new: NewKey) -> None:
    for gateway in fleet.gateways:
        own(gateway)["next_public_key"] = str(new.public)
        gateway.reload()
    for peer in (fleet.v, fleet.alloc):
        peer.peers[0]["next_public_key"] = str(new.public)
        peer.reload()
        assert peer.status()["peers"][0]["profile"], "it forgets nothing"


def sign_by_new(node: Node, new: NewKey) -> None:
    del own(node)["next_key_file"]
    own(node)["key_file"] = str(new.path)
    assert node.reload()["networks"][0]["key_id"] == new.id


def forget_old(fleet: Fleet, new: NewKey) -> None:
    for section, node in (*((own(g), g) for g in fleet.gateways), *((n.peers[0], n) for n in (fleet.v, fleet.alloc))):
        del section["next_public_key"]
        section["public_key"] = str(new.public)
        node.reload()


def signed_by(fleet: Fleet) -> str:
    return fleet.v.status()["peers"][0]["signed_by"]


def test_no_packet_is_lost_in_any_step(fleet, streams):
    """The active profiler changes first, then its standby; at the end the standby takes over with the new key."""
    new = NewKey(fleet.p1)
    active, standby = fleet.profilers if lease(fleet.p1)["active"] else reversed(fleet.profilers)
    for step in (accept_for_both, know_both):
        step(fleet, new)
        goes_on(fleet)
    before = profile(fleet)["epoch"]
    for profiler in (active, standby):
        sign_by_new(profiler, new)
        until(lambda: signed_by(fleet) == new.id, "the new key has signed")
        goes_on(fleet)
    assert profile(fleet)["epoch"] > before
    forget_old(fleet, new)
    goes_on(fleet)
    until(lambda: fleet.alloc.status()["peers"][0]["profile"]["epoch"] > before, "the allocator has them, too")
    active.stop()
    until(lambda: lease(standby)["active"], "the standby takes over")
    goes_on(fleet)
    assert network(standby)["key_id"] == signed_by(fleet) == new.id
    for stream in streams:
        stream.finish()
        assert stream.sent > 500
        assert stream.lost == []
    status = fleet.v.status()
    assert (status["absent"], sum(status["rejected"].values())) == (0, 0)
    assert fleet.alloc.status()["bus"]["counters"].get("wrong_profile", 0) == 0


def test_a_standby_that_still_signs_by_the_old_key_may_take_over(fleet, streams):
    """Between the steps: gateways and verifier take both keys, until the old one is taken out."""
    new = NewKey(fleet.p1)
    until(lambda: lease(fleet.p1)["active"], "the first is active")
    accept_for_both(fleet, new)
    know_both(fleet, new)
    sign_by_new(fleet.p1, new)
    until(lambda: signed_by(fleet) == new.id, "the new key has signed")
    fleet.p1.stop()
    until(lambda: signed_by(fleet) != new.id, "the standby signs by the old one")
    goes_on(fleet)
    sign_by_new(fleet.p2, new)
    until(lambda: signed_by(fleet) == new.id, "and then by the new one")
    for stream in streams:
        stream.finish()
        assert stream.lost == []
    assert sum(fleet.v.status()["rejected"].values()) == 0
