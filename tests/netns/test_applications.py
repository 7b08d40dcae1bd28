"""An application's bandwidth, from its cgroup to the other end's policy; and what a daemon leaves on cgroups.

a ---- 10.1.0.0/24, fd00:1::/64 ---- b      two cgroups at a send to b; the database sends more than its share
"""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack

import pytest
from compiled import bpffs
from groups import Group, sending
from guests import seeing_cgroups
from hosts import acquainted, pair, start, until

from scentd.collect.cgroup import UNIFIED, mounted

pytestmark = pytest.mark.skipif(
    UNIFIED not in mounted(), reason="needs a mounted cgroup v2, whose cgroups have programs"
)

HIGH = 'has("role={};metric=bandwidth_out;level=high")'


@pytest.fixture
def nodes(tmp_path):
    """a with its two applications and the offload off, b with a policy about each."""
    with ExitStack() as stack:
        pin_dir = stack.enter_context(bpffs(tmp_path / "bpf")) / "scentd"
        groups = {role: stack.enter_context(Group(role)) for role in ("db", "web")}
        a, b = stack.enter_context(pair("ax", tmp_path))
        seeing_cgroups(a.host)
        a.sections = {"datapath": {"offload": "off", "pin_dir": str(pin_dir)}}
        a.network["source"] = [
            {"kind": "application", "cgroup": group.name, "capacity": "1mbit", "role": role}
            for role, group in groups.items()
        ]
        a.network["interval"] = "1s"
        b.sections = {
            "policy": [
                {"name": role, "when": HIGH.format(role), "do": {"kind": "command", "argv": ["/bin/true"]}}
                for role in groups
            ]
        }
        yield a, b, groups, pin_dir / "applications"


def on(group) -> set[int]:
    """The numbers of the programs on a cgroup."""
    argv = ["bpftool", "-j", "cgroup", "show", group.paths[UNIFIED]]
    said = subprocess.run(argv, capture_output=True, check=True).stdout.strip()
    return {program["id"] for program in json.loads(said or "[]")}


def fired(node) -> set[str]:
    return {p["policy"] for p in node.status()["allocation"]["policies"] if p["fired_at"] is not None}


def test_the_other_end_learns_which_application_is_the_hog(nodes):
    a, b, groups, pins = nodes
    start(a, b)
    for role, size, pause in (("db", 1000, 0.001), ("web", 100, 0.1)):
        groups[role].start(*sending(b.host.ipv4, size, pause), prefix=tuple(a.host.argv()))
    acquainted(b, a)
    until(lambda: fired(b), "a policy fires")
    assert fired(b) == {"db"}
    assert a.status()["datapath"] == "nfqueue"
    assert a.stop() == 0
    assert on(groups["db"]) == on(groups["web"]) == set()
    assert not pins.exists()


def test_a_daemon_that_is_killed_and_its_successors(nodes):
    """The program goes on; the next daemon takes it over, a reload takes it off, `scentd cleanup` what is left."""
    a, _, groups, pins = nodes
    a.start()
    first = on(groups["db"])
    assert first
    assert on(groups["web"])
    a.kill()
    assert on(groups["db"]) == first
    a.network["source"].pop()
    a.start()
    assert on(groups["db"])
    assert first.isdisjoint(on(groups["db"])), "the program is the new daemon's"
    assert on(groups["web"]) == set()
    before, a.network["source"] = a.network["source"], [{"kind": "memory"}]
    a.reload()
    assert on(groups["db"]) == set()
    assert not pins.exists()
    a.network["source"] = before
    a.reload()
    until(lambda: on(groups["db"]), "the program is back")
    a.kill()
    assert a.cli("cleanup").returncode == 0
    assert on(groups["db"]) == set()
    assert not pins.exists()


def test_an_application_that_is_not_there_stops_nothing(nodes):
    a, b, groups, _ = nodes
    groups["web"].paths[UNIFIED].rmdir()
    a.network["source"].append({"kind": "memory"})
    start(a, b)
    acquainted(b, a)
    name = f"failures_application_{groups['web'].name.replace('-', '_')}"
    assert until(lambda: a.status()["networks"][0]["collectors"][name], "the failure is counted")
    assert f"cgroup {groups['web'].name}: " in a.log.read_text()
    groups["web"].paths[UNIFIED].mkdir()
    until(lambda: "works again" in a.log.read_text(), "it works again")
    assert on(groups["web"])
