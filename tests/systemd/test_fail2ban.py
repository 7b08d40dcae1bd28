"""The action that we ship for fail2ban, with a real one in a directory of its own. It bans by this action alone."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hosts import ROOT, Node, environment, until
from topology import Topology

from scentd import files

pytestmark = pytest.mark.netns

JAIL = """\
[test]
enabled = true
filter = sshd
backend = polling
usedns = no
logpath = {log}
maxretry = 3
findtime = 600
bantime = 600
action = scentd[network=a, hold=30s, scentd="{program}"]
"""
SERVER = "[Definition]\nloglevel = INFO\nlogtarget = STDOUT\ndbfile = {0}/db\ndbpurgeage = 1d\nallowipv6 = yes\n"


@pytest.fixture
def node(tmp_path):
    with Topology("fb") as net, Node(net.host("a"), tmp_path) as a:
        net.link(a.host, net.host("b"), ipv4="10.1.0.0/24", ipv6="fd00:1::/64")
        a.network["source"] = [{"kind": "event"}]
        a.start()
        yield a


class Fail2ban:
    def __init__(self, directory: Path, node: Node) -> None:
        self.directory, self.log = directory, directory / "auth.log"
        shutil.copytree("/etc/fail2ban/filter.d", directory / "filter.d")
        (directory / "action.d").mkdir()
        shutil.copy(files.directory() / "fail2ban-scentd.conf", directory / "action.d" / "scentd.conf")
        (directory / "fail2ban.conf").write_text(SERVER.format(directory))
        program = shlex.join([sys.executable, "-m", "scentd", "--socket", str(node.control)])
        (directory / "jail.conf").write_text(JAIL.format(log=self.log, program=program))
        self.log.touch()
        self.pid = 1

    def __enter__(self) -> Fail2ban:
        places = ["-c", self.directory, "-s", self.directory / "sock", "-p", self.directory / "pid"]
        self.output = open(self.directory / "output", "wb")
        self.process = subprocess.Popen(
            ["fail2ban-server", *map(str, places), "-f", "start"],
            stdout=self.output,
            stderr=self.output,
            env=environment(),
            cwd=ROOT,
        )
        until(lambda: "Server ready" in self.said(), f"fail2ban starts: {self.said()}")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(30)
        self.output.close()

    def said(self) -> str:
        return (self.directory / "output").read_text()

    def failures(self, address: str, count: int) -> None:
        with open(self.log, "a") as log:
            for _ in range(count):
                now = time.strftime("%b %d %H:%M:%S")
                self.pid += 1  # its filter for sshd tells connections apart by that
                log.write(f"{now} host sshd[{self.pid}]: Failed password for root from {address} port 4000 ssh2\n")


def counters(node: Node) -> dict[str, int]:
    return node.status()["networks"][0]["collectors"]


def test_a_ban_is_an_event(node, tmp_path):
    (tmp_path / "f").mkdir()
    with Fail2ban(tmp_path / "f", node) as fail2ban:
        fail2ban.failures("203.0.113.5", 2)
        time.sleep(1.5)  # fail2ban has looked
        assert counters(node)["event_taken"] == 0
        fail2ban.failures("203.0.113.5", 1)
        until(lambda: counters(node)["event_taken"] == 1, f"the event: {fail2ban.said()}", 30)
        until(lambda: node.status()["networks"][0]["levels"].get("threat") == 0.5, "it raises the threat")
        assert "event=intrusion" in node.status()["networks"][0]["items"]
        fail2ban.failures("2001:db8::5", 3)
        until(lambda: counters(node)["event_taken"] == 2, f"the second event: {fail2ban.said()}", 30)
    with fail2ban:
        until(lambda: "Restore Ban" in fail2ban.said(), f"fail2ban has its bans back: {fail2ban.said()}", 30)
        fail2ban.failures("203.0.113.6", 3)
        until(lambda: " Ban 203.0.113.6" in fail2ban.said(), f"a new ban: {fail2ban.said()}", 30)
        until(lambda: counters(node)["event_taken"] >= 3, f"it is told: {fail2ban.said()}", 30)
        time.sleep(2)  # for the others, which are not
        assert counters(node)["event_taken"] == 3
        node.stop()
        fail2ban.failures("203.0.113.7", 3)
        until(lambda: "is scentd running?" in fail2ban.said(), f"the failure is logged: {fail2ban.said()}", 30)
