"""Sources that look at cgroups, in the sandbox of the unit as shipped, on a real systemd."""

from __future__ import annotations

import pytest
from hosts import peer_of, start, until
from machine import two_machines

pytestmark = [pytest.mark.netns, pytest.mark.alone]

GROUP = "system.slice/scentd.service"
SOURCES = [
    {"kind": "cpu", "cgroup": GROUP},
    {"kind": "pressure", "resource": "io", "metric": "database_load", "cgroup": GROUP},
    {"kind": "application", "cgroup": GROUP, "capacity": "1gbit"},
]
LEVELS = {"cpu", "database_load", "bandwidth_in", "bandwidth_out"}


def test_the_unit_sees_cgroups_read_only_and_that_is_enough(tmp_path):
    """Also to bring the program to one. A stop takes it off."""
    with two_machines("sg", tmp_path) as (a, b):
        a.peers = [peer_of(b)]
        a.network["source"] = [*SOURCES, {"kind": "memory"}]
        a.network["interval"] = "2s"
        a.machine.boot()
        start(a)
        until(lambda: set(a.status()["networks"][0]["levels"]) >= LEVELS, f"all are read: {a.machine.log()}", 60)
        counters = a.status()["networks"][0]["collectors"]
        assert {name: n for name, n in counters.items() if name.startswith("failures") and n} == {}
        pins = a.machine.directory / "bpf" / "scentd" / "applications"
        assert len(list(pins.iterdir())) == 3
        a.machine.run("systemctl", "stop", "scentd")
        assert not pins.exists()
