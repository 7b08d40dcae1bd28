"""The whole of act/ on a real kernel: what is submitted is there, fails alone, comes back and goes away."""

import socket
import time
from contextlib import closing
from ipaddress import ip_network

import pytest
from topology import Topology

from scentd import act
from scentd.act import reconcile
from scentd.act.actuator import Tally
from scentd.act.bandwidth import Shaper
from scentd.act.quarantine import QuarantineTable
from scentd.act.reconcile import Reconciler
from scentd.config.policy import Policy
from scentd.config.sections import Config, Peer
from scentd.core.allocate.actions.bandwidth import BandwidthAction
from scentd.core.allocate.actions.quarantine import QuarantineAction, QuarantineEntry
from scentd.model import Desired

pytestmark = pytest.mark.netns

NODE = ip_network("10.9.0.1/32")
PREFIXES = {"a": (ip_network("10.9.0.0/24"),)}


@pytest.fixture
def net():
    with Topology("actr") as made:
        node, host = made.host("node"), made.host("host")
        made.link(node, host, ipv4="10.9.0.0/24")
        yield made


@pytest.fixture
def host(net):
    return net.hosts["host"]


def policy(name, do):
    return Policy(name=name, when="true", do=do)


def settings(*interfaces, quarantine=True):
    peer = Peer(name="a", public_key="", addresses=["10.9.0.0/24"])
    policies = [policy(i, BandwidthAction(interface=i, step=1e6, floor=1e6, ceiling=9e6)) for i in interfaces]
    if quarantine:
        policies.append(policy("q", QuarantineAction()))
    return Config(peer=[peer], policy=policies)


@pytest.fixture
def start(host):
    """Makes Reconcilers in the host; they are closed in the end."""
    made = []

    def make(*args, **more):
        tally, applied = Tally(), []
        made.append(host.call(Reconciler, settings(*args, **more), tally, applied.append))
        made[-1].counters, made[-1].applied = tally.all, applied
        return made[-1]

    yield make
    for each in made:
        each.close(remove=True)


def desired(rate=None, interface="", seconds=60.0):
    rates = {("a", interface): rate} if rate else {}
    held = {NODE: QuarantineEntry(time.time() + seconds, seconds, "a", "q", 1)}
    return Desired({"quarantine": held, "bandwidth": rates})


def quarantined(host):
    def inside():
        with closing(QuarantineTable()) as actuator:
            return set(actuator.read())

    return host.call(inside)


def rates(host):
    return host.call(Shaper(host.interfaces[0], PREFIXES).read_rates)


def wait_for(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_submitted_is_carried_out_and_closed_away(host, start):
    made = start(host.interfaces[0])
    begin = time.monotonic()
    made.submit(desired(2e6, host.interfaces[0]))
    assert time.monotonic() - begin < 0.05
    wait_for(lambda: quarantined(host) == {NODE} and rates(host) == {"a": 2e6})
    made.submit(Desired({"bandwidth": {("a", host.interfaces[0]): 3e6}}))
    wait_for(lambda: quarantined(host) == set() and rates(host) == {"a": 3e6})
    made.close(remove=False)
    assert rates(host) == {"a": 3e6}
    assert host.call(act.cleanup) != []
    assert host.call(act.cleanup) == []


def test_close_removes(host, start):
    made = start(host.interfaces[0])
    made.submit(desired(2e6, host.interfaces[0]))
    wait_for(lambda: rates(host) and quarantined(host))
    made.close(remove=True)
    assert host.call(act.cleanup) == []


def test_counts_what_was_dropped(net, host, start, monkeypatch):
    monkeypatch.setattr(reconcile, "RECONCILE", 0.05)
    made = start()
    made.submit(desired())
    wait_for(lambda: quarantined(host) == {NODE})
    with net.hosts["node"].call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", (host.ipv4, 9))
    wait_for(lambda: made.counters().get("quarantine_dropped_ipv4", 0) >= 1)
    assert made.counters()["quarantine_changes"] == 1


def test_one_that_fails_is_retried_and_the_other_goes_on(host, start, monkeypatch, caplog):
    monkeypatch.setattr(reconcile, "BACKOFF_MIN", 0.05)
    made = start("later0")
    made.submit(desired(2e6, "later0"))
    wait_for(lambda: quarantined(host) == {NODE})
    wait_for(lambda: made.counters().get("bandwidth_later0_failures", 0) >= 2)
    assert made.counters().get("quarantine_failures", 0) == 0
    assert (
        "bandwidth_later0: interface later0: does not exist; correct do.interface of the bandwidth policy; next try in"
        " 0.05 s" in caplog.text
    )
    assert caplog.text.count("interface later0: does not exist") == 1, "once, though it fails again and again"
    assert made.why_not("bandwidth", "later0").startswith("interface later0: does not exist")
    assert made.why_not("bandwidth", host.interfaces[0]) == made.why_not("quarantine", str(NODE)) == ""
    host.ip("link add later0 type veth peer name later1")
    wait_for(lambda: "rate 2Mbit" in host.out("tc", "class", "show", "dev", "later0"))
    wait_for(lambda: not made.why_not("bandwidth", "later0"))
    failures = made.counters()["bandwidth_later0_failures"]
    assert failures < 10  # it backs off: 0.05, 0.1, 0.2 ...


def test_what_is_asked_in_vain(host):
    """An interface that is not there, and a rate that is only raised."""
    raised, missing = host.call(act.notes, settings(host.interfaces[0], "later9"))[0::2]
    assert raised == (
        f"policy {host.interfaces[0]}: only raises a rate that nothing sets; give it `start`, or the interface a "
        "policy with a negative step"
    )
    assert missing == "interface later9: is not there now; until it is, bandwidth policies limit nothing on it"


def test_back_off_holds_against_new_states(host, start, monkeypatch):
    monkeypatch.setattr(reconcile, "BACKOFF_MIN", 0.4)
    made = start("nothere")
    for i in range(30):
        made.submit(desired(2e6 + 1000 * i, "nothere"))
        time.sleep(0.01)
    assert made.counters()["bandwidth_nothere_failures"] == 1


def test_a_mistake_of_ours_does_not_end_the_thread(host, start, monkeypatch):
    monkeypatch.setattr(reconcile, "BACKOFF_MIN", 0.05)
    made = start()
    monkeypatch.setattr(QuarantineTable, "apply", lambda *_: 1 // 0)
    made.submit(desired())
    wait_for(lambda: made.counters().get("quarantine_failures", 0) >= 1)
    monkeypatch.undo()
    wait_for(lambda: quarantined(host) == {NODE})


def test_what_others_take_away_comes_back(host, start, monkeypatch):
    monkeypatch.setattr(reconcile, "RECONCILE", 0.05)
    start(host.interfaces[0]).submit(desired(2e6, host.interfaces[0]))
    wait_for(lambda: quarantined(host) == {NODE} and rates(host) == {"a": 2e6})
    host.run("nft", "flush", "ruleset")
    host.run("tc", "qdisc", "del", "dev", host.interfaces[0], "root")
    wait_for(lambda: quarantined(host) == {NODE} and rates(host) == {"a": 2e6})


def test_what_an_earlier_run_left_is_swept(host, start):
    first = start(host.interfaces[0])
    first.submit(desired(2e6, host.interfaces[0]))
    wait_for(lambda: quarantined(host) and rates(host))
    first.close(remove=False)
    start(quarantine=False)
    wait_for(lambda: host.call(act.cleanup) == [])


def test_only_what_policies_need_is_kept():
    def names(config):
        return [actuator.name for kind in act.ACTUATORS.values() for actuator in kind.actuators(config)]

    assert names(Config()) == []
    assert names(settings("eth1", "eth0")) == ["quarantine", "bandwidth_eth0", "bandwidth_eth1"]


def test_it_tells_when_the_host_is_as_desired(host, start, monkeypatch):
    monkeypatch.setattr(reconcile, "BACKOFF_MIN", 0.05)
    made, want = start("later0"), desired(2e6, "later0")
    made.submit(want)
    wait_for(lambda: made.counters().get("bandwidth_later0_failures", 0) >= 1)
    assert made.applied == [], "one of two actuators fails"
    host.ip("link add later0 type veth peer name later1")
    wait_for(lambda: made.applied)
    assert made.applied[0] is want
