"""A key is changed in three steps, at either end, under load, and nothing is lost or forgotten.

a ---- 10.1.0.0/24, fd00:1::/64 ---- b      each the other's strict peer
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from edges import strict_ends
from hosts import Node, acquainted, until
from steady import Steady, steady

from scentd.state import key_files

pytestmark = pytest.mark.netns


@pytest.fixture(params=["queue", "offload"])
def nodes(request, tmp_path) -> Iterator[tuple[Node, Node]]:
    with strict_ends("ro", tmp_path, request.param == "offload") as ends:
        yield ends


@pytest.fixture
def streams(nodes) -> Iterator[list[Steady]]:
    a, b = nodes
    with ExitStack() as stack:
        yield [stack.enter_context(steady(*ends, version)) for ends in ((a, b), (b, a)) for version in (4, 6)]


class NewKey:
    def __init__(self, owner: Node) -> None:
        self.path = owner.directory / "next"
        self.path.touch(0o600)
        self.path.write_text(key_files.generate() + "\n")
        self.public = key_files.load(str(self.path)).public
        self.id = self.public.key_id.hex()


def seen_of(node: Node) -> dict:
    return node.status()["peers"][0]


def accept_for_both(owner: Node, new: NewKey) -> None:
    """The first step."""
    owner.network["next_key_file"] = str(new.path)
    assert owner.reload()["networks"][0]["next_key_id"] == new.id


def know_both(other: Node, new: NewKey) -> None:
    """The second, at every peer."""
    other.peers[0]["next_public_key"] = str(new.public)
    assert seen_of(other)["profile"]
    other.reload()
    assert seen_of(other)["profile"], "it forgets nothing"


def sign_by_new(owner: Node, new: NewKey) -> None:
    """The third, and the tidying behind it."""
    del owner.network["next_key_file"]
    owner.network["key_file"] = str(new.path)
    owner.reload()


def forget_old(other: Node, new: NewKey) -> None:
    del other.peers[0]["next_public_key"]
    other.peers[0]["public_key"] = str(new.public)
    other.reload()
    assert seen_of(other)["profile"], "nor now"


def rotate(owner: Node, other: Node) -> NewKey:
    new = NewKey(owner)
    accept_for_both(owner, new)
    know_both(other, new)
    until(lambda: seen_of(owner)["made_for"] == new.id, "the peer's packets are made for the new key")
    assert f"made for our key {new.id}" in owner.cli("status").stdout
    before = other.epoch(owner)
    sign_by_new(owner, new)
    until(lambda: seen_of(other)["signed_by"] == new.id, "the new key has signed")
    assert other.epoch(owner) > before
    forget_old(other, new)
    return new


def test_one_end_after_the_other(nodes, streams):
    a, b = nodes
    for owner, other in ((a, b), (b, a)):
        new = rotate(owner, other)
        epoch = other.epoch(owner)
        until(lambda o=other, w=owner, e=epoch: o.epoch(w) > e, "an epoch by the new key alone")
        assert seen_of(other)["signed_by"] == new.id
    for stream in streams:
        stream.finish()
        assert stream.sent > 500
        assert stream.lost == []
    for node in nodes:
        assert sum(node.status()["rejected"].values()) == 0


def test_both_ends_at_once(nodes, streams):
    a, b = nodes
    news = NewKey(a), NewKey(b)
    ends = [(a, b, news[0]), (b, a, news[1])]
    for owner, _, new in ends:
        accept_for_both(owner, new)
    for _, other, new in ends:
        know_both(other, new)
    for owner, _, new in ends:
        until(lambda o=owner, n=new: seen_of(o)["made_for"] == n.id, "made for the new key")
    for owner, _, new in ends:
        sign_by_new(owner, new)
    for _, other, new in ends:
        until(lambda o=other, n=new: seen_of(o)["signed_by"] == n.id, "signed by the new key")
    for _, other, new in ends:
        forget_old(other, new)
    for stream in streams:
        stream.finish()
        assert stream.lost == []


def test_the_last_step_by_a_restart(nodes):
    """State goes on: no replay window opens, and the old epochs stay refused."""
    a, b = nodes
    new = NewKey(a)
    accept_for_both(a, new)
    know_both(b, new)
    before = b.epoch(a)
    del a.network["next_key_file"]
    a.network["key_file"] = str(new.path)
    a.restart()
    until(lambda: seen_of(b)["signed_by"] == new.id, "signed by the new key")
    assert b.epoch(a) > before


def test_one_of_two_keys_is_stolen(nodes):
    """The other one goes on."""
    a, b = nodes
    new = NewKey(a)
    accept_for_both(a, new)
    know_both(b, new)
    until(lambda: seen_of(a)["made_for"] == new.id, "the peer's packets are made for the new key")
    sign_by_new(a, new)
    until(lambda: seen_of(b)["signed_by"] == new.id, "the new key has signed")
    old = a.identity.public
    assert b.cli("revoke", str(old)).returncode == 0
    assert f"its key {old.key_id.hex()} is revoked" in b.cli("status").stdout
    acquainted(b, a)
    epoch = b.epoch(a)
    until(lambda: b.epoch(a) > epoch, "epochs by the new key go on")
