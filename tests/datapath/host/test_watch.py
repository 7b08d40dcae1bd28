"""The watch in a real namespace: what it hears of, and when it calls.

The hosts are those of conftest.py.
"""

from __future__ import annotations

import socket
import threading
import time
from ipaddress import ip_network

import pytest
from lowered import TABLE, config, full_mtu_is
from topology import Host

from scentd.config.sections import Config
from scentd.core.interest import Interest, spans
from scentd.datapath.host import routes, watch

pytestmark = pytest.mark.netns


class Follower:
    """Applies a configuration whenever the watch calls."""

    def __init__(self, host: Host, wish: Config) -> None:
        self.calls = 0
        self.called = threading.Event()
        self.host, self.wish = host, wish
        self.watch = host.call(watch.Watch, self.changed, debounce=0.05)

    def changed(self) -> None:
        self.host.call(routes.apply, self.wish)
        self.calls += 1
        self.called.set()

    def wait(self) -> bool:
        came = self.called.wait(10)
        self.called.clear()
        return came


@pytest.mark.netns
def test_the_watch_follows_the_main_table_and_not_itself(host):
    wish = config("10.8.0.0/24", "10.1.0.2", "fd00:8::/64")
    host.call(routes.apply, wish)
    follower = Follower(host, wish)
    with follower.watch:
        for change, address, mtu in (
            ("route add 10.8.0.0/16 via 10.2.0.2", "10.8.0.1", 1364),
            ("route replace 10.8.0.0/16 via 10.1.0.2", "10.8.0.1", 1464),
            ("route add fd00:8::/32 via fd00:1::2", "fd00:8::1", 1460),
            ("link set near0 mtu 1450", "10.8.0.1", 1414),
            (f"route del 10.1.0.2 table {TABLE}", "10.1.0.2", 1414),  # somebody else's mistake is mended
            ("rule del priority 22602", "10.1.0.2", 1414),
            ("rule add priority 100 fwmark 7 lookup main", "10.1.0.2", 1414),  # they decide where routes may stand
            ("rule del priority 100", "10.1.0.2", 1414),
        ):
            host.ip(change)
            assert follower.wait(), change
            full_mtu_is(host, address, mtu)
            time.sleep(0.15)  # a second look may follow, and then there is peace
            follower.called.clear()
        before = follower.calls
        time.sleep(0.3)
        host.ip("route add 10.77.0.0/16 via 10.1.0.2 table 99", "route add 10.78.0.0/16 via 10.1.0.2 table 99")
        time.sleep(0.2)
        assert follower.calls == before
    assert not follower.watch.thread.is_alive()


@pytest.mark.netns
@pytest.mark.parametrize(
    "switch", ["net.ipv4.ip_forward", "net.ipv4.conf.near0.forwarding", "net.ipv6.conf.near0.forwarding"]
)
def test_the_watch_hears_of_forwarding(host, switch):
    follower = Follower(host, config("10.1.0.2"))
    with follower.watch:
        host.run("sysctl", "-qw", f"{switch}=1")
        assert follower.wait()


@pytest.mark.netns
def test_a_new_interface_is_not_waited_for(host):
    """Programs are on it before it has routes; the first burst of changes would take the whole pause."""
    calls = []
    with host.call(watch.Watch, lambda: calls.append(time.monotonic()), debounce=5.0):
        host.ip("link set near0 mtu 1450")
        time.sleep(0.2)
        assert calls == []
        host.ip("link add new0 type veth peer name new1")
        end = time.monotonic() + 2
        while not calls and time.monotonic() < end:
            time.sleep(0.01)
        assert calls
        host.ip("link del new0")


@pytest.mark.netns
def test_what_concerns_no_peer_is_told_apart(host):
    """A container comes and goes: its interface and its addresses are new, and routes to peers are as they were."""
    uplink = host.call(socket.if_nametoindex, "near0")
    interest = Interest(spans(map(ip_network, ("10.1.0.2", "fd00:8::/64"))), {uplink}, set(), forwards=False)
    taken: list[watch.Changes] = []
    made = host.call(watch.Watch, lambda: taken.append(made.last), debounce=0.1)
    made.interest = interest

    def changes(*lines: str) -> list[watch.Changes]:
        taken.clear()
        host.ip(*lines)
        time.sleep(0.6)
        return list(taken)

    with made:
        came = changes(
            "link add new0 type veth peer name new1",
            "link set new1 up",
            "link set new0 up",
            "addr add 172.17.0.1/24 dev new0",
            "route add 172.18.0.0/16 via 172.17.0.2",
        )
        index, other = (host.call(socket.if_nametoindex, name) for name in ("new0", "new1"))
        assert came
        assert not any(c.routes or c.lost for c in came)
        assert set().union(*(c.links for c in came)) == {index, other}
        addresses: set[tuple[int, str]] = set()
        for change in came:
            addresses = change.of(addresses)
        assert (index, "172.17.0.1") in addresses
        assert len([a for a in addresses if a[1].startswith("fe80:")]) == 2
        gone = changes("link del new0")
        assert not any(c.routes or c.lost for c in gone)
        assert set().union(*(c.gone for c in gone)) == {index, other}
        for change in gone:
            addresses = change.of(addresses)
        assert not addresses
        for line in (
            "route add 10.1.0.0/16 via 10.2.0.2",
            "route del 10.1.0.0/16 via 10.2.0.2",
            "link set near0 mtu 1450",
            "addr add 10.1.0.2/32 dev near0",
            "addr del 10.1.0.2/32 dev near0",
            "rule add priority 100 fwmark 7 lookup main",
            "rule del priority 100",
        ):
            assert any(c.routes for c in changes(line)), line


@pytest.mark.netns
def test_a_burst_of_changes_is_one_call_and_a_failing_call_is_not_the_end(host, caplog):
    calls = []

    def changed() -> None:
        calls.append(time.monotonic())
        if len(calls) == 1:
            raise ValueError("broken")

    with host.call(watch.Watch, changed, debounce=0.1):
        for gateway in ("10.1.0.2", "10.2.0.2"):
            host.ip(*(f"route replace 10.{i}.0.0/16 via {gateway}" for i in range(20, 40)))
            time.sleep(0.3)
    assert len(calls) == 2
    assert "cannot follow" in caplog.text


@pytest.mark.netns
def test_a_callback_may_ask_for_another_call(host):
    calls = []

    def changed() -> float | None:
        calls.append(time.monotonic())
        return 0.2 if len(calls) == 1 else None

    with host.call(watch.Watch, changed, debounce=0.05):
        host.ip("link set near0 mtu 1450")
        end = time.monotonic() + 5
        while len(calls) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        assert len(calls) == 2
        assert calls[1] - calls[0] >= 0.19
