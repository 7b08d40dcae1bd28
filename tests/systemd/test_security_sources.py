"""Sources of security events under the unit as shipped, on a real systemd: its journal, Debian's sshd, its sandbox."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hosts import start, until
from machine import Served
from topology import Topology
from tree import Tree

# Alone: a machine boots, and beside other tests that may take longer.
pytestmark = [pytest.mark.netns, pytest.mark.alone]

EVE = "/var/log/suricata/eve.json"
CLAMAV = "/var/log/clamav/clamav.log"
ALERT = '{"event_type":"alert","alert":{"severity":1}}'
DROP_IN = "/run/systemd/system/scentd.service.d"
KNOCK = (
    *("sshpass", "-p", "wrong", "ssh", "-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR"),
    *("-o", "UserKnownHostsFile=/dev/null", "-o", "PubkeyAuthentication=no", "-o", "NumberOfPasswordPrompts=1"),
)


@pytest.fixture(scope="module")
def node(tmp_path_factory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("so")
    with Tree(directory / "tree") as tree, Topology("so") as net:
        a = Served(net.host("a"), directory, tree)
        net.link(a.host, net.host("b"), ipv4="10.1.0.0/24", ipv6="fd00:1::/64")
        a.network["interval"] = "2s"
        a.network["source"] = [
            {"kind": "sshd", "failures": 3},
            {"kind": "eve", "file": EVE},
            {"kind": "clamav", "file": CLAMAV},
            {"kind": "event"},
        ]
        with a.machine:
            a.machine.boot()
            a.machine.run("install", "-d", "-m", "0755", "/var/log/suricata")
            a.machine.run("install", "-m", "0640", "-g", "adm", "/dev/null", EVE)
            a.machine.run("install", "-d", "-m", "0755", "/var/log/clamav")
            a.machine.run("install", "-m", "0640", "-o", "nobody", "-g", "adm", "/dev/null", CLAMAV)
            start(a)
            yield a


def collectors(node: Served) -> dict[str, int]:
    return node.status()["networks"][0]["collectors"]


def append(node: Served, path: str, line: str) -> None:
    node.machine.run("sh", "-c", 'echo "$1" >> "$2"', "sh", line, path)


def test_the_journal_tells_of_failed_logins_and_only_sshd_speaks_for_sshd(node):
    forged = "Failed password for root from 10.1.0.1 port 1 ssh2"
    node.machine.run("logger", "-t", "sshd", "-p", "auth.info", forged)
    node.machine.run("setpriv", "--reuid=nobody", "--clear-groups", "logger", "-t", "sshd", "-p", "auth.info", forged)
    node.machine.run("systemctl", "start", "ssh")
    for user in ("root", "admin", "root"):
        assert node.machine.run(*KNOCK, f"{user}@127.0.0.1", "true", check=False).returncode != 0
    until(lambda: collectors(node)["sshd_failures"] == 3, f"three failures: {collectors(node)}")
    until(lambda: node.status()["networks"][0]["levels"]["threat"] >= 0.5, "the threat rises")
    counters = collectors(node)
    assert (counters["sshd_failures"], counters["failures_sshd"], counters["sshd_restarts"]) == (3, 0, 0)
    assert forged in node.machine.out("journalctl", "-t", "sshd", "-o", "cat", "--no-pager"), (
        "the forged ones are there"
    )
    assert "journalctl" in node.machine.out("systemctl", "status", "scentd", "--no-pager")


def test_a_log_of_root_s_is_read_and_one_of_a_group_needs_the_group(node):
    append(node, EVE, ALERT)
    until(lambda: collectors(node)["eve_alerts"] == 1, "the alert")
    until(lambda: collectors(node)["failures_clamav"], "the log that root without rights may not read")
    assert "SupplementaryGroups=, e.g. adm" in node.machine.log()
    node.machine.run("mkdir", "-p", DROP_IN)
    append(node, f"{DROP_IN}/logs.conf", "[Service]\nSupplementaryGroups=adm")
    node.machine.run("systemctl", "daemon-reload")
    node.machine.run("systemctl", "restart", "scentd")
    node.wait_started()
    assert collectors(node)["failures_clamav"] == 0
    append(node, CLAMAV, "/srv/a: Eicar-Test FOUND")
    until(lambda: collectors(node)["clamav_found"] == 1, "the finding")
    assert collectors(node)["eve_alerts"] == 0, "what was in the file before the start is old"


def test_an_event_by_hand(node):
    said = node.machine.out("scentd", "event", "--network", "a", "--severity", "0.9", "--node", node.host.ipv4)
    assert said == f"intrusion of node {node.host.ipv4} counts in network a"
