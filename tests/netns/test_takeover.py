"""Daemons come and go while their programs work: not a packet is lost, none leaves without a scent.

ann, bob, cat (a, b, c) on one Ethernet, each the others' peer, each with the offload; all drop what has no scent
"""

from __future__ import annotations

import copy
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from compiled import bpffs, compiled
from flows import Flows
from hosts import ROOT, Node, answered, environment, peer_of, start, until
from pinned import end_lease, links, programs, receiving, take_off
from test_daemon import snapshot
from test_reload import stranger
from topology import Topology

from scentd.state import key_files

pytestmark = pytest.mark.netns

NAMES = ("ann", "bob", "cat")
HANDED_OVER = 75
STRICT = {"absent": "drop", "rejected": "drop"}
ENDS = pytest.mark.parametrize("end", [0, 1], ids=["the sender's", "the receiver's"])
ACCEPT = 'SEC("tc") int passing(struct __sk_buff *skb) { return TC_ACT_UNSPEC; }'


@pytest.fixture(scope="module")
def nodes(tmp_path_factory) -> Iterator[dict[str, Node]]:
    directory = tmp_path_factory.mktemp("tk")
    with bpffs(directory / "bpf") as mount, Topology("tk") as net:
        made = {name: Node(net.host(name), directory) for name in NAMES}
        net.bridge([node.host for node in made.values()], "10.1.0.0/24", "fd00:1::/64")
        for node in made.values():
            node.pin_dir = mount / node.name
            node.network["interval"] = "10s"  # a profile may be sent for three and 15 s: a restart must not take longer
            node.peers = [peer_of(other, **STRICT) for other in made.values() if other is not node]
        with made["ann"], made["bob"], made["cat"]:
            start(*made.values())
            yield made


@pytest.fixture
def ends(nodes) -> Iterator[tuple[Node, Node]]:
    """a and b, running, with the configuration that the module began with."""
    saved = [(n, copy.deepcopy((n.network, n.peers, n.sections, n.pin_dir))) for n in nodes.values()]
    a, b = nodes["ann"], nodes["bob"]
    until(lambda: reached(a, b), "packets of a's are accepted")
    assert {n.status()["datapath"] for n in (a, b)} == {"nfqueue+ebpf"}
    yield a, b
    for node, before in saved:
        now = node.network, node.peers, node.sections, node.pin_dir
        node.network, node.peers, node.sections, node.pin_dir = before
        if not node.running() or now[2:] != before[2:]:
            node.restart()
        elif now != before:
            node.reload()


def reached(a: Node, b: Node) -> bool:
    with a.socket(4) as sender, b.socket(4) as receiver:
        return answered(sender, receiver, seconds=0.3)


def known(a: Node, b: Node) -> int:
    """The newest epoch of a's that b has seen, if it has the whole profile; else 0."""
    profile = b.profile(a)
    return profile["epoch"] if profile is not None and profile["epoch"] == b.epoch(a) else 0


# -- takeover, under load -------------------------------------------------------


@ENDS
def test_killed_and_started_again(ends, end):
    node = ends[end]
    with Flows(*ends):
        node.kill()
        node.start()


@ENDS
def test_handed_over(ends, end):
    node = ends[end]
    there = programs(node)
    with Flows(*ends):
        assert node.end(signal.SIGUSR1) == HANDED_OVER
        assert programs(node) == there
        node.start()
        until(lambda: node.status()["accepted"] > 0, "the counters go on")
    assert len(there) == 2


def test_the_profile_is_in_the_maps(ends):
    """With both daemons dead no fragment is new; what b's successor knows of a it has from the maps."""
    a, b = ends
    a.kill()
    epoch = until(lambda: reached(a, b) and known(a, b), "the last profile is whole")
    with Flows(a, b):
        b.kill()
        b.start()
        assert b.profile(a)["epoch"] == epoch


def test_killed_in_an_epoch_that_began_before_its_maps(ends):
    """b's maps know this epoch from the epoch file alone, and then its fragments: that is enough to start from."""
    a, b = ends
    a.kill()  # its programs stay with this epoch
    b.stop()
    b.start()
    assert reached(a, b)
    b.kill()
    b.start()
    assert reached(a, b)


def test_reloads(ends):
    """Peers come and go, weights, intervals and address lists change, at both ends."""
    a, b = ends
    with Flows(a, b):
        for round_ in range(3):
            for node in (a, b):
                node.peers = [*node.peers[:2], *(stranger(node, n) for n in range(3 * round_))]
                node.network["weights"] = {"memory": 1.0 + round_}
                node.network["addresses"] = [*node.addresses, f"10.77.0.0/{20 + round_}", f"fd77::/{48 + round_}"]
                node.peers[0] = {
                    **node.peers[0],
                    "addresses": [*node.peers[0]["addresses"][:2], f"10.78.{round_}.0/24"],
                }
                assert node.reload()["reloads"]["refused"] == 0, node.log.read_text()


def test_another_peer_gets_a_new_key(nodes, ends):
    a, b = ends
    c = nodes["cat"]
    with Flows(a, b):
        c.stop()
        c.key_file.write_text(key_files.generate() + "\n")
        c.identity = key_files.load(str(c.key_file))
        for node, other in ((a, b), (b, a)):
            node.peers = [peer_of(other, **STRICT), peer_of(c, **STRICT)]
            node.reload()
        c.start()
        until(lambda: reached(c, b), "b accepts it under its new key")


def test_upgrade(ends, tmp_path):
    """A daemon of another build puts its programs into the places of the old ones and takes their maps."""
    other_build(tmp_path)
    before = {node.name: (programs(node), receiving(node)) for node in ends}
    with Flows(*ends):
        for node in ends:
            assert node.end(signal.SIGUSR1) == HANDED_OVER
            launch_from(tmp_path, node)
            node.wait_started()
    for node in ends:
        old, same = before[node.name]
        assert len(programs(node) - old) == 2
        assert receiving(node) == same


def other_build(directory: Path) -> None:
    """A copy of the package whose programs call one helper more."""
    shutil.copytree(ROOT / "scentd", directory / "scentd", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "bpf", directory / "bpf", ignore=shutil.ignore_patterns("__pycache__"))
    for name, line in (("stamp", "return leave("), ("verify", "return verify(skb,")):
        source = directory / "bpf" / f"{name}.bpf.c"
        text = source.read_text()
        assert line in text
        source.write_text(text.replace(line, f"bpf_ktime_get_coarse_ns();\n\t{line}"))
    subprocess.run(["make", "--silent", "--always-make", "--directory", directory / "bpf"], check=True)


def launch_from(directory: Path, node: Node) -> None:
    with open(node.log, "ab") as log:
        node.process = node.host.start(
            *(sys.executable, "-m", "scentd", "run", "--config", str(node.config)),
            env={**environment(), "PYTHONPATH": str(directory)},
            cwd=directory,
            stdout=log,
            stderr=log,
        )


# -- without a daemon -----------------------------------------------------------


@pytest.mark.parametrize("fail", ["closed", "open"])
def test_past_the_lease(ends, fail):
    """The programs go on without a daemon for as long as the clock says; then verify.fail decides."""
    a, b = ends
    b.sections["verify"] = {"fail": fail}
    b.restart()
    b.kill()
    assert reached(a, b)
    end_lease(b)
    assert reached(a, b) is (fail == "open")
    b.start()
    until(lambda: reached(a, b), "with a daemon they decide again")


def test_cleanup_leaves_what_is_others(ends, tmp_path):
    """Invariant 7, after kill -9: programs, pins, rules and routes go; a filter of somebody else's stays."""
    _, b = ends
    b.stop()
    link = b.host.interfaces[0]
    other = compiled(tmp_path, "passing", ACCEPT)
    b.host.run("tc", "qdisc", "add", "dev", link, "clsact")
    for side in ("ingress", "egress"):
        b.host.run("tc", "filter", "add", "dev", link, side, "prio", "7", "bpf", "da", "obj", other, "sec", "tc")
    before, filters = snapshot(b), foreign(b)
    b.start()
    assert links(b)
    b.kill()
    assert snapshot(b) != before
    for _ in range(2):
        done = b.cli("cleanup")
        assert done.returncode == 0, done.stderr
        assert snapshot(b) == before
        assert not b.pin_dir.exists()
        assert foreign(b) == filters
        assert "scent" not in b.host.out("bpftool", "net", "list")
    b.host.run("tc", "qdisc", "del", "dev", link, "clsact")


def foreign(node: Node) -> list[str]:
    """The host's tc filters."""
    out = [
        node.host.out("tc", "filter", "show", "dev", node.host.interfaces[0], side) for side in ("ingress", "egress")
    ]
    assert all("passing" in text for text in out)
    return out


def test_off_after_a_crash_with_the_offload(ends):
    a, b = ends
    there = b.pin_dir
    b.kill()
    assert links(b)
    b.sections["datapath"] = {"offload": "off"}
    b.start()
    assert b.status()["datapath"] == "nfqueue"
    assert b.status()["offload"]["why_not"] == "datapath.offload is off"
    assert not there.exists()
    until(lambda: reached(a, b), "the queue verifies")
    until(lambda: b.status()["accepted"] > 0, "and counts")


def test_no_bpf_file_system(ends, tmp_path):
    """One line says what is missing and the way out, in the log and in the status; the queue does the work."""
    a, b = ends
    b.stop()
    size = b.log.stat().st_size
    b.pin_dir = tmp_path / "plain"
    b.start()
    status = b.status()
    assert status["datapath"] == "nfqueue"
    assert "datapath.pin_dir" in status["offload"]["why_not"]
    assert "BPF file system" in status["offload"]["why_not"]
    said = [line for line in b.log.read_text()[size:].splitlines() if "offload" in line or "pin_dir" in line]
    assert len(said) == 1, said
    assert status["offload"]["why_not"] in said[0]
    assert not any(b.pin_dir.glob("*"))
    until(lambda: reached(a, b), "the queue verifies")


def test_programs_that_somebody_takes_off_are_put_back(ends):
    """Meanwhile the queue verifies."""
    a, b = ends
    before = {node.name: programs(node) for node in ends}
    for node in ends:
        take_off(node)
    until(lambda: all("putting them back" in n.log.read_text() for n in ends), "both see it", 20)
    until(lambda: all(programs(n) == before[n.name] for n in ends), "they are there again")
    with Flows(a, b):
        assert reached(a, b)


def test_there_was_no_defect(nodes):
    for node in nodes.values():
        assert "Traceback" not in node.log.read_text(), node.log.read_text()[-3000:]


def test_commands_beside_a_daemon_are_refused(ends):
    """They would take away what its status goes on claiming."""
    _, b = ends
    before = snapshot(b), links(b)
    for command in (("cleanup",), ("rules", "remove")):
        done = b.cli(*command)
        assert done.returncode == 1
        assert "a daemon runs here" in done.stderr
    assert (snapshot(b), links(b)) == before


def test_what_others_take_away_comes_back(ends):
    """Pins and programs: said once, put back, and status is true meanwhile."""
    a, b = ends
    size = b.log.stat().st_size
    shutil.rmtree(b.pin_dir)
    until(lambda: b.pin_dir.exists() and len(links(b)) == 2, "pins and programs are back", 30)
    until(lambda: reached(a, b), "packets are accepted")
    said = b.log.read_text()[size:]
    assert "Traceback" not in said
    assert said.count("somebody has removed") == 1
    with Flows(a, b):
        b.end(signal.SIGUSR1)
        b.launch()
        b.wait_started()
