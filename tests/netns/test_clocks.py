"""Clocks that were wrong: traffic is back when they are right, and nothing old comes in meanwhile.

a ---- 10.1.0.0/24, fd00:1::/64 ---- b      default treatments, an epoch each second
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack

import forge
import pytest
from compiled import bpffs
from edges import in_place, offloaded, reached
from hosts import Node, acquainted, answered, pair, peer_of, until
from wall_clock import WallClock

pytestmark = pytest.mark.netns

WRONG = 600  # seconds


class Ends:
    """Two nodes with clocks of their own."""

    def __init__(self, a: Node, b: Node, clocks: dict[str, WallClock]) -> None:
        self.a, self.b = a, b
        self.clock_a, self.clock_b = clocks["a"], clocks["b"]

    def right(self) -> None:
        self.clock_a.set(0)
        self.clock_b.set(0)

    def reach(self) -> bool:
        return reached(self.a, self.b) == [True, True]

    def lead(self) -> float:
        """Seconds by which the sender's epoch is ahead of the right time."""
        return self.a.status()["networks"][0]["epoch"] - time.time()


@pytest.fixture(scope="module", params=["queue", "offload"])
def running(request, tmp_path_factory) -> Iterator[Ends]:
    directory = tmp_path_factory.mktemp("cl")
    with ExitStack() as stack:
        a, b = stack.enter_context(pair("cl", directory))
        if request.param == "offload":
            offloaded(stack.enter_context(bpffs(directory / "bpf")), a, b)
        clocks = {node.name: WallClock(node) for node in (a, b)}
        for node, other in ((a, b), (b, a)):
            node.network["interval"] = "1s"
            node.peers = [peer_of(other)]
            node.write()
            node.launch()
        for node in (a, b):
            node.wait_started()
        in_place(a, b)
        acquainted(b, a)
        yield Ends(a, b, clocks)


@pytest.fixture
def ends(running) -> Iterator[Ends]:
    """Both clocks are right, and traffic passes, before each test and after it."""
    until(lambda: running.b.status()["peers"][0]["highest_epoch"] < time.time() + 10, "nothing is ahead")
    until(running.reach, "it passes before")
    yield running
    running.right()
    until(running.reach, "it passes after", 30)


def test_a_sender_that_was_ahead(ends):
    """Ten minutes for some seconds: from its clock's being right on its packets are accepted."""
    before = ends.a.status()["networks"][0]["voided"]
    ends.clock_a.set(WRONG)
    until(lambda: ends.lead() > WRONG - 10, "its epochs are ahead")
    assert not any(reached(ends.a, ends.b)), "refused by default"
    ends.clock_a.set(0)
    until(ends.reach, "it passes again")
    assert ends.a.status()["networks"][0]["voided"] == before + 1
    assert "s ahead of the clock, which was wrong" in ends.a.log.read_text()
    ends.a.stop()
    ends.a.launch()
    ends.a.wait_started()
    until(ends.reach, "and after a restart")


def test_a_sender_that_was_a_little_ahead_goes_on_with_its_last_profile(ends):
    """Eight seconds, an epoch each second: stamped all the time, and it catches up."""
    ends.clock_a.set(8)
    until(lambda: ends.lead() > 6, "its epochs are ahead")
    assert ends.reach(), "receivers take ten seconds"
    ends.clock_a.set(0)
    end = time.monotonic() + 4
    while time.monotonic() < end:
        assert ends.reach(), "none is refused or unscented meanwhile"
    until(lambda: ends.lead() < 1.5, "it has caught up", 20)
    assert ends.reach()


def test_both_were_ahead_and_the_wrong_minutes_are_replayed(ends):
    """The receiver had accepted them: it falls back, and takes none of them when the time comes."""
    a, b = ends.a, ends.b
    ends.clock_a.set(WRONG)
    ends.clock_b.set(WRONG)
    until(lambda: b.status()["peers"][0]["highest_epoch"] > time.time() + WRONG - 20, "it takes them")
    wrong = b.status()["peers"][0]["highest_epoch"]
    ends.right()
    until(lambda: "they are right again" in b.log.read_text(), "it falls back")
    until(ends.reach, "it passes again", 30)
    until(lambda: b.profile(a) and b.profile(a)["epoch"] < time.time() + 2, "and its profiles count")
    ahead = wrong - int(time.time()) - 8  # within what receivers take of others
    ends.clock_b.set(ahead)
    ends.clock_a.set(ahead)
    until(lambda: b.status()["peers"][0]["highest_epoch"] > time.time() + ahead - 10, "the time has come again")
    future = b.status()["rejected"]["future"]
    for version in (4, 6):
        recorded = forge.issued(a.identity, b, wrong)
        with b.socket(version) as receiver, forge.connected(a, receiver.getsockname()[:2]) as sender:
            forge.attach(sender, forge.scent(sender, receiver.getsockname()[:2], recorded))
            assert not answered(sender, receiver, seconds=0.3)
    until(lambda: b.status()["rejected"]["future"] >= future + 2, "they are refused")


def test_a_receiver_that_is_set_back_a_day_takes_nothing_of_yesterday(ends):
    a, b = ends.a, ends.b
    day = 86400
    highest = b.status()["peers"][0]["highest_epoch"]
    ends.clock_b.set(-day)
    until(lambda: re.search(r"clock was set by -8\d{4} s", b.log.read_text()), "it has noticed")
    yesterday = forge.issued(a.identity, b, int(time.time()) - day)
    for version in (4, 6):
        with b.socket(version) as receiver, forge.connected(a, receiver.getsockname()[:2]) as sender:
            forge.attach(sender, forge.scent(sender, receiver.getsockname()[:2], yesterday))
            end = time.monotonic() + 2.5
            while time.monotonic() < end:
                assert not answered(sender, receiver, seconds=0.3)
    assert b.status()["peers"][0]["highest_epoch"] >= highest


def test_a_machine_that_was_suspended_makes_a_new_epoch_at_once(ends):
    """The wall clocks jump, the monotonic ones have stood still: nothing waits for the time that was due before."""
    a = ends.a
    a.network["interval"] = "30s"
    a.reload()
    until(ends.reach, "it passes")
    ends.clock_a.set(WRONG)
    ends.clock_b.set(WRONG)
    until(ends.reach, "long before the interval is over", 12)
    ends.right()
    a.network["interval"] = "1s"
    a.reload()


def test_a_boot_in_1970(ends):
    """A clock that is plainly wrong issues nothing: unscented beats refused."""
    a, b = ends.a, ends.b
    a.stop()
    ends.clock_a.set_to(1000)
    a.write()
    a.launch()
    until(lambda: a.control.exists() and "before scentd was made" in a.log.read_text(), "it says so", 30)
    refused = sum(b.status()["rejected"].values())
    assert ends.reach(), "without a scent"
    assert sum(b.status()["rejected"].values()) == refused
    ends.clock_a.set(0)
    until(lambda: a.status()["networks"][0]["issued"] > 0, "right again")
    before = b.count("accepted")
    assert ends.reach()
    until(lambda: b.count("accepted") > before, "with a scent again")
