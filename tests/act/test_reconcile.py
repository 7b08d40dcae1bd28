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
from scentd.act.quarantine import QuarantineTable
from scentd.act.reconcile import Reconciler
from scentd.config.policy import Policy
from scentd.config.sections import Config, Peer
from scentd.core.allocate.actions.quarantine import QuarantineAction, QuarantineEntry
from scentd.errors import HostError
from scentd.model import Desired

pytestmark = pytest.mark.netns

NODE = ip_network("10.9.0.1/32")


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


def settings(quarantine=True):
    peer = Peer(name="a", public_key="", addresses=["10.9.0.0/24"])
    return Config(peer=[peer], policy=[policy("q", QuarantineAction())] if quarantine else [])


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


def desired(seconds=60.0):
    return Desired({"quarantine": {NODE: QuarantineEntry(time.time() + seconds, seconds, "a", "q", 1)}})


def quarantined(host):
    def inside():
        with closing(QuarantineTable()) as actuator:
            return set(actuator.read())

    return host.call(inside)


def wait_for(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_submitted_is_carried_out_and_closed_away(host, start):
    made = start()
    begin = time.monotonic()
    made.submit(desired())
    assert time.monotonic() - begin < 0.05
    wait_for(lambda: quarantined(host) == {NODE})
    made.submit(Desired())
    wait_for(lambda: quarantined(host) == set())
    made.submit(desired())
    wait_for(lambda: quarantined(host) == {NODE})
    made.close(remove=False)
    assert quarantined(host) == {NODE}
    assert host.call(act.cleanup) != []
    assert host.call(act.cleanup) == []


def test_close_removes(host, start):
    made = start()
    made.submit(desired())
    wait_for(lambda: quarantined(host))
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


@pytest.fixture
def broken(monkeypatch):
    """The table refuses, as nftables would, until the fixture's function is called."""
    real = QuarantineTable.apply

    def refuse(*_):
        raise HostError("nftables: refused")

    monkeypatch.setattr(QuarantineTable, "apply", refuse)
    return lambda: monkeypatch.setattr(QuarantineTable, "apply", real)


def test_a_failure_is_told_once_and_retried(host, start, broken, monkeypatch, caplog):
    monkeypatch.setattr(reconcile, "BACKOFF_MIN", 0.05)
    made = start()
    made.submit(desired())
    wait_for(lambda: made.counters().get("quarantine_failures", 0) >= 2)
    assert caplog.text.count("quarantine: nftables: refused; next try in 0.05 s") == 1
    assert made.why_not("quarantine", str(NODE)) == "nftables: refused"
    assert made.applied == []
    broken()
    wait_for(lambda: quarantined(host) == {NODE} and not made.why_not("quarantine", str(NODE)))
    assert made.counters()["quarantine_failures"] < 10, "it backs off: 0.05, 0.1, 0.2 ..."


def test_back_off_holds_against_new_states(start, broken, monkeypatch):
    monkeypatch.setattr(reconcile, "BACKOFF_MIN", 0.4)
    made = start()
    for i in range(30):
        made.submit(desired(60.0 + i))
        time.sleep(0.01)
    assert made.counters()["quarantine_failures"] == 1


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
    start().submit(desired())
    wait_for(lambda: quarantined(host) == {NODE})
    host.run("nft", "flush", "ruleset")
    wait_for(lambda: quarantined(host) == {NODE})


def test_what_an_earlier_run_left_is_swept(host, start):
    first = start()
    first.submit(desired())
    wait_for(lambda: quarantined(host))
    first.close(remove=False)
    start(quarantine=False)
    wait_for(lambda: host.call(act.cleanup) == [])


def test_only_what_policies_need_is_kept():
    def names(config):
        return [actuator.name for kind in act.ACTUATORS.values() for actuator in kind.actuators(config)]

    assert names(Config()) == []
    assert names(settings()) == ["quarantine"]


def test_it_tells_when_the_host_is_as_desired(start):
    made, want = start(), desired()
    made.submit(want)
    wait_for(lambda: made.applied)
    assert made.applied[0] is want
