"""SIGHUP: what changes is applied, what goes on is not disturbed, what is wrong is refused whole."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
from hosts import Node, acquainted, answered, environment, pair, peer_of, start, until
from steady import steady

from scentd.state import key_files
from scentd.wire.keys import identity

pytestmark = pytest.mark.netns

WRONG = {"interval": "5 parsecs", "weights": {"no_such_metric": 2}, "labels": ["bad"]}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    with pair("rl", tmp_path_factory.mktemp("rl")) as (a, b):
        a.peers, b.peers = [peer_of(b, absent="drop")], [peer_of(a, absent="drop")]
        start(a, b)
        acquainted(b, a)
        acquainted(a, b)
        yield a, b


@pytest.fixture(autouse=True)
def as_before(nodes):
    """Each test finds the configuration that the daemons were started with."""
    saved = [(n, copy.deepcopy((n.network, n.peers, n.sections))) for n in nodes]
    yield
    for node, (network, peers, sections) in saved:
        if (network, peers, sections) != (node.network, node.peers, node.sections):
            node.network, node.peers, node.sections = network, peers, sections
            node.reload()


def stranger(node: Node, number: int) -> dict:
    """A peer that is not there, under a key of its own."""
    public = identity(key_files.parse_secret(key_files.generate())).public
    return {"name": f"other{number}", "public_key": str(public), "addresses": [f"10.9.{number}.0/24"]}


@pytest.mark.parametrize("version", [4, 6])
def test_no_packet_is_lost(nodes, version):
    """Peers come and go, weights and intervals change: 0 lost either way, none unscented (it would be dropped)."""
    a, b = nodes
    rejected = b.status()["rejected"], a.status()["rejected"]
    with steady(a, b, version) as there, steady(b, a, version) as back:
        for round_ in range(3):
            for node, other in ((a, b), (b, a)):
                node.peers = [peer_of(other, absent="drop"), *(stranger(node, n) for n in range(round_ * 3))]
                node.network["weights"] = {"memory": 1.0 + round_}
                node.network["interval"] = f"{2 + round_}s"
                assert len(node.reload()["peers"]) == len(node.peers)
    assert min(there.sent, back.sent) > 100
    assert there.lost == []
    assert back.lost == []
    assert (b.status()["rejected"], a.status()["rejected"]) == rejected


def test_new_weights_are_in_the_next_profile(nodes):
    a, b = nodes
    a.network["source"][0:1] = [{"kind": "memory"}, {"kind": "cpu"}]
    a.network["weights"] = {"memory": 0.0, "threat": 0.0, "cpu": 1.0}
    epoch = b.epoch(a)
    a.reload()
    profile = until(lambda: (p := b.profile(a))["epoch"] > epoch and "cpu" in p["levels"] and p, "a profile with cpu")
    assert profile["overall"] == pytest.approx(profile["levels"]["cpu"], abs=0.03)


def test_a_wrong_configuration_is_refused_whole(nodes):
    """All mistakes are in the log, nothing of the new file is used, packets flow."""
    a, b = nodes
    network, peers = dict(a.network), a.peers
    a.network, a.peers = {**network, **WRONG}, [*peers, {"name": "x", "addresses": ["10.0.0.0/33"]}]
    size = a.log.stat().st_size
    before = a.status()
    with steady(a, b, 4) as stream:
        after = a.reload()
    assert after["reloads"]["refused"] == before["reloads"]["refused"] + 1
    assert after["reloads"]["applied"] == before["reloads"]["applied"]
    assert [p["name"] for p in after["peers"]] == [p["name"] for p in before["peers"]]
    assert stream.lost == []
    said = a.log.read_text()[size:]
    for mistake in ("[0].interval", "[0].weights.no_such_metric", "[0].labels[0]", "peer[1].public_key"):
        assert mistake in said
    assert "the old configuration stays" in said
    a.network, a.peers = network, peers
    assert a.reload()["reloads"]["applied"] == before["reloads"]["applied"] + 1


def test_what_needs_a_restart_is_refused_with_words(nodes):
    a, _ = nodes
    size = a.log.stat().st_size
    a.sections["datapath"] = {"workers": 2}
    refused = a.reload()["reloads"]["refused"]
    assert refused
    assert "datapath.workers: changed; this needs a restart" in a.log.read_text()[size:]


def test_a_peer_that_leaves_is_not_accepted_any_more(nodes):
    """And one that comes back meets its old highest epoch: no replay window."""
    a, b = nodes
    peers = b.peers
    epoch = b.epoch(a)
    b.peers = [stranger(b, 1)]
    b.reload()
    with a.socket(4) as sender, b.socket(4) as receiver:
        unknown = b.status()["rejected"]["unknown-key"]
        assert not answered(sender, receiver, seconds=0.3)
        until(lambda: b.status()["rejected"]["unknown-key"] > unknown, "it is a stranger now")
        b.peers = peers
        b.reload()
        assert b.epoch(a) >= epoch
        assert answered(sender, receiver, seconds=3)


def test_epochs_are_never_issued_twice(nodes):
    """An epoch is a nonce: reloads as fast as they go, and still every one is used once."""
    a, _ = nodes
    monitor = subprocess.Popen(
        [sys.executable, "-m", "scentd", "monitor", "--json", "--socket", str(a.control)],
        stdout=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    try:
        assert monitor.stdout is not None
        json.loads(monitor.stdout.readline())  # it listens
        for n in range(4):
            a.network["weights"] = {"cpu": 1.0 + n}
            issued = a.reload()["networks"][0]["issued"]
            until(lambda issued=issued: a.status()["networks"][0]["issued"] > issued, "it issues")
    finally:
        monitor.terminate()
        events = [json.loads(line) for line in monitor.communicate()[0].splitlines()]
    epochs = [e["epoch"] for e in events if e["event"] == "epoch"]
    assert len(epochs) >= 4
    assert epochs == sorted(set(epochs))
