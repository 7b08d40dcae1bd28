"""The units as shipped, on a real systemd: two machines, one wire, strict peers.

a ---- 10.1.0.0/24, fd00:1::/64 ---- b
"""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from flows import Flows
from hosts import acquainted, answered, peer_of, start, until
from machine import Served, two_machines
from tree import UNITS

# Alone: the guard holds packets for 5 s, and beside other tests a start may take longer.
pytestmark = [pytest.mark.netns, pytest.mark.alone]


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Iterator[tuple[Served, Served]]:
    with two_machines("sd", tmp_path_factory.mktemp("sd")) as (a, b):
        for node, other in ((a, b), (b, a)):
            node.peers = [peer_of(other, absent="drop", rejected="drop")]
            node.machine.boot()
        start(a, b)
        acquainted(b, a)
        acquainted(a, b)
        yield a, b


@pytest.fixture(params=["offload", "queue"])
def path(request, both) -> str:
    """Both ends with the offload, or both with the queue alone."""
    wanted = {} if request.param == "offload" else {"datapath": {"offload": "off"}}
    for node in both:
        if node.sections != wanted:
            node.sections = dict(wanted)
            node.write()
            node.machine.run("systemctl", "restart", "scentd")
            node.wait_started()
    until(lambda: all(map(reached, both, reversed(both))), "both verify")
    return request.param


def reached(sender: Served, receiver: Served) -> bool:
    with sender.socket(4) as one, receiver.socket(4) as other:
        return answered(one, other, seconds=0.3)


def test_the_offload_is_in_place(both):
    for node in both:
        assert node.status()["offload"]["why_not"] == "", node.machine.log()
        assert node.status()["datapath"] == "nfqueue+ebpf"
        assert node.status()["guard"]["closed"]


def test_the_kernels_tunables_are_out_of_reach(both):
    """All that ProtectKernelTunables=yes forbids but the BPF file system, as the daemon sees the files."""
    a, _ = both

    def inside(command: str) -> str:
        """What a shell says in the daemon's mount namespace, where root may do everything else."""
        argv = ["nsenter", "-t", str(a.main_pid()), "-m", "--wd=/", "sh", "-c", command]
        done = a.machine.run(*argv, check=False)
        return done.stdout + done.stderr

    for path in ("/proc/sys/kernel/hostname", "/proc/irq/default_smp_affinity"):
        assert "Read-only file system" in inside(f": >> {path}"), path
    assert inside("stat -c %a /proc/kallsyms") == "0\n"
    assert inside("mkdir /sys/fs/bpf/tried && rmdir /sys/fs/bpf/tried && echo done") == "done\n"


def doctors(node: Served) -> dict[str, tuple[str, str]]:
    """What doctor says: (ok, found) by name."""
    done = node.machine.run("scentd", "doctor", "--json", check=False)
    return {check["name"]: (check["ok"], check["found"]) for check in json.loads(done.stdout)["checks"]}


def test_doctor_sees_what_the_service_sees(both):
    """Root may pin maps in a shell; a unit that may not is told from a host without a BPF file system."""
    a, _ = both
    said = doctors(a)
    assert [name for name, (ok, _) in said.items() if ok == "no"] == []
    assert said["its offload"][0] == "yes"
    a.machine.run("systemctl", "stop", "scentd")
    said = doctors(a)
    assert {ok for name, (ok, _) in said.items() if name.startswith("unit: ")} == {"yes"}
    assert "unit: offload" in said
    assert not list((a.machine.directory / "bpf").glob("scentd*")), "doctor leaves nothing"
    a.machine.run("sh", "-ec", STRICTER.format(directory="/run/systemd/system/scentd.service.d"))
    said = doctors(a)
    assert said["pin directory"][0] == "yes"
    assert said["unit: offload"][0] == "warning"
    assert "Read-only file system" in said["unit: offload"][1]
    assert "ProtectKernelTunables" in said["unit: offload"][1]
    a.launch()
    a.wait_started()
    assert a.status()["datapath"] == "nfqueue"
    assert "ProtectKernelTunables" in a.status()["offload"]["why_not"]
    a.machine.run("rm", "-r", "/run/systemd/system/scentd.service.d")
    a.machine.run("systemctl", "daemon-reload")
    a.machine.run("systemctl", "restart", "scentd")
    a.wait_started()


STRICTER = """mkdir -p {directory}
printf '[Service]\\nProtectKernelTunables=yes\\n' > {directory}/stricter.conf
systemctl daemon-reload
"""


EVENTS = {
    "restart": ("systemctl", "restart", "scentd"),
    "reload": ("systemctl", "reload", "scentd"),
    "hand-over": ("systemctl", "kill", "--signal=USR1", "--kill-whom=main", "scentd"),
    "daemon killed": ("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "scentd"),
    "all killed": ("systemctl", "kill", "--signal=KILL", "scentd"),
}
GUARDS = 5  # that end one after the other
FAILURES = ("daemon killed", "all killed")  # of which systemd may speak


@pytest.mark.parametrize("end", [0, 1], ids=["the sender's", "the receiver's"])
@pytest.mark.parametrize("event", EVENTS)
def test_what_an_event_costs(both, path, event, end):
    """Nothing: no packet is lost, and none leaves without a scent."""
    node = both[end]
    before = node.main_pid(), node.status()["reloads"]
    said = len(node.machine.log())
    with Flows(*both):
        node.machine.run(*EVENTS[event])
        if event == "reload":
            until(lambda: node.status()["reloads"] != before[1], "reloaded")
        else:
            until(lambda: node.main_pid() not in (0, before[0]), "a successor")
        node.wait_started()
    assert ("Failed with result" in node.machine.log()[said:]) == (event in FAILURES)
    assert node.status()["guard"]["given_up"] == 0


@pytest.mark.parametrize("end", [0, 1], ids=["the sender's", "the receiver's"])
@pytest.mark.parametrize("number", ["KILL", "TERM"])
def test_what_the_end_of_a_guard_costs(both, path, number, end):
    """Nothing: the next one goes on with its table and its queues."""
    node = both[end]
    with Flows(*both):
        for _ in range(GUARDS):
            next_guard(node, number)
            time.sleep(0.2)
    until(lambda: node.status()["guard"]["connected"], "a guard")
    assert node.status()["guard"]["given_up"] == 0
    tables = [line for line in node.host.out("nft", "list", "tables").splitlines() if "scentd_closed" in line]
    assert len(tables) == 1


def next_guard(node: Served, number: str) -> None:
    before = node.machine.show("scentd-guard", "MainPID")
    node.machine.run("systemctl", "kill", f"--signal={number}", "scentd-guard")
    until(lambda: node.machine.show("scentd-guard", "MainPID") not in ("0", before), "a new guard")


def test_a_refused_reload_fails_and_the_journal_knows_how_bad_it_was(both):
    """As configuration management expects; `journalctl -p err` has the reasons and nothing else."""
    a, _ = both
    config = a.machine.root / "etc/scentd/scentd.toml"
    good = config.read_text()
    config.write_text(good + "\n[nonsense]\n")
    try:
        done = a.machine.run("systemctl", "reload", "scentd", check=False)
        assert done.returncode != 0
    finally:
        config.write_text(good)
    errors = a.machine.out("journalctl", "-u", "scentd", "-p", "err", "-o", "cat")
    assert "scentd: reload refused, the old configuration stays" in errors
    assert "nonsense" in errors
    assert "configuration reloaded" not in errors
    assert a.status()["reloads"]["refused"] >= 1


@pytest.fixture(scope="module")
def exporting(both) -> Served:
    """The first machine with a group that may ask, and the exporter, by the words of systemd/README.md."""
    a, _ = both
    text = (UNITS / "README.md").read_text().split("**The exporter**")[1].split("\n\n")[1]
    made, *started = (line.split("#")[0].strip() for line in text.strip().splitlines())
    a.machine.run("sh", "-ec", made)
    a.sections = {**a.sections, "daemon": {**a.sections.get("daemon", {}), "control_group": "scentd"}}
    a.write()
    for line in started:
        a.machine.run("sh", "-ec", line)
    return a


def test_the_exporter_serves_metrics(exporting):
    """As an unprivileged user."""
    a = exporting
    until(lambda: "scentd_up 1.0" in metrics(a), "metrics")
    pid = a.machine.show("scentd-exporter", "MainPID")
    uid = a.machine.out("sh", "-c", f"awk '/^Uid:/ {{ print $2 }}' /proc/{pid}/status").strip()
    assert int(uid) > 0
    assert 'scentd_peer_accepted_total{peer="b"}' in metrics(a)
    a.machine.run("systemctl", "disable", "--now", "scentd-exporter")


def test_who_may_not_read_the_configuration(exporting):
    """It is root's alone. Members of daemon.control_group ask all the same; others are told, and doctor, too."""
    a = exporting
    assert (a.machine.root / "etc/scentd").stat().st_mode & 0o077 == 0

    def as_nobody(group: str, *command: str) -> subprocess.CompletedProcess[str]:
        argv = ["setpriv", "--reuid=65534", f"--regid={group}", "--clear-groups", "scentd", *command]
        return a.machine.run(*argv, check=False)

    assert "peer b" in as_nobody("scentd", "status").stdout
    refused = as_nobody("65534", "status")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "permission denied; be root or in daemon.control_group" in refused.stderr
    said = as_nobody("65534", "doctor")
    assert "not judged: only root can tell" in said.stdout
    assert "Traceback" not in said.stderr


def metrics(node: Served) -> str:
    with node.host.call(socket.socket) as end, suppress(OSError):
        end.connect(("127.0.0.1", 9736))
        end.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        return b"".join(iter(lambda: end.recv(1 << 16), b"")).decode()
    return ""


def test_a_daemon_that_hangs_is_replaced(both):
    a, _ = both
    before = a.main_pid()
    a.machine.run("systemctl", "kill", "--signal=STOP", "--kill-whom=main", "scentd")
    until(lambda: a.main_pid() not in (0, before), "the watchdog has it replaced", 60)
    a.wait_started()


# -- closed ------------------------------------------------------------------------


class Unscented:
    """Steady datagrams of a host whose daemon is stopped; `arrived` counts those that came in."""

    def __init__(self, sender: Served, receiver: Served) -> None:
        self.one, self.other = sender.socket(4), receiver.socket(4)
        self.other.setblocking(False)
        self.to = self.other.getsockname()
        self.sent = 0
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run, name="unscented")

    def run(self) -> None:
        while not self.stopped.wait(0.001):
            with suppress(OSError):  # the receiver's link is down for a while
                self.one.sendto(b"unscented", self.to)
                self.sent += 1

    def __enter__(self) -> Unscented:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join()
        self.one.close()
        self.other.close()

    def arrived(self) -> int:
        """Since the last call."""
        count = 0
        with suppress(BlockingIOError):
            while self.other.recv(100):
                count += 1
        return count


@pytest.fixture
def unscented(both) -> Iterator[Unscented]:
    a, b = both
    a.machine.run("systemctl", "stop", "scentd")
    with Unscented(a, b) as flow:
        until(lambda: flow.sent > 100, "packets leave")
        flow.arrived()
        yield flow
    for node in both:
        node.write()
        node.machine.run("systemctl", "restart", "scentd-guard", "scentd")
        node.wait_started()


def test_nothing_unscented_comes_in_while_the_daemon_is_away(both, path, unscented):
    """Restarts, crashes, flushed rules, a broken configuration, a stop. Only `scentd cleanup` opens."""
    _, b = both
    run = b.machine.run
    flush_rules(b)
    until(lambda: "SCENTD" in b.host.out("iptables", "-w", "-t", "raw", "-S"), "the rules are back")
    for event in ("restart", "hand-over", "daemon killed", "all killed"):
        before = b.main_pid()
        run(*EVENTS[event])
        until(lambda before=before: b.main_pid() not in (0, before), "a successor")
        b.wait_started()
    (b.machine.root / "etc/scentd/scentd.toml").write_text("broken")
    run("systemctl", "restart", "scentd", check=False)
    assert b.machine.show("scentd", "ActiveState") == "failed"
    assert "SCENTD" not in b.host.out("iptables", "-w", "-t", "raw", "-S"), "as a stop"
    b.write()
    run("systemctl", "start", "scentd")
    b.wait_started()
    run("systemctl", "stop", "scentd")
    for number in ("TERM", "KILL"):
        next_guard(b, number)
        time.sleep(0.5)
    assert unscented.arrived() == 0
    assert "nothing is closed" in run("scentd", "cleanup").stderr
    until(unscented.arrived, "it is open now")


def flush_rules(node: Served) -> None:
    """As a firewall does that begins anew. What has an owner stays, and then nft says that it could not do all."""
    for program in ("iptables", "ip6tables"):
        node.host.run(program, "-w", "-t", "raw", "-F")
        node.host.run(program, "-w", "-t", "raw", "-X")
    node.host.run("nft", "flush", "ruleset", check=False)


LINK = """[Unit]
DefaultDependencies=no
After=network-pre.target
Before=network.target shutdown.target
Conflicts=shutdown.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/ip link set {link} up
ExecStop=/usr/sbin/ip link set {link} down
[Install]
WantedBy=multi-user.target
"""


@pytest.mark.parametrize("configuration", ["good", "broken"])
def test_a_boot_opens_nothing(both, unscented, configuration):
    """The link comes up behind network-pre.target, as on every host; the daemon comes later, or not at all."""
    _, b = both
    (link,) = b.host.interfaces
    unit = b.machine.root / "etc/systemd/system/test-link.service"
    unit.write_text(LINK.format(link=link))
    b.machine.run("systemctl", "enable", "--now", "test-link")
    if configuration == "broken":
        (b.machine.root / "etc/scentd/scentd.toml").write_text("broken")
    b.machine.power_off()
    assert unscented.arrived() == 0, "an orderly shutdown opens nothing"
    b.host.ip(f"link set {link} down")
    b.host.run("nft", "flush", "ruleset")
    b.host.run("ip", "rule", "flush")
    b.host.ip("rule add pref 32766 lookup main")  # flushing leaves that of the table local
    sent = unscented.sent
    b.machine.boot()
    until(lambda: unscented.sent > sent + 1000, "packets leave")
    assert b.machine.show("scentd", "ActiveState") == ("active" if configuration == "good" else "failed")
    assert b.host.out("ip", "-br", "link", "show", link).split()[1] == "UP"
    assert unscented.arrived() == 0
    unit.unlink()


def test_uninstalling_leaves_nothing(both):
    """By the words of systemd/README.md."""
    text = (UNITS / "README.md").read_text()
    block = text.split("**Uninstall.**")[1].split("\n\n")[1]
    a, _ = both
    for line in block.strip().splitlines():
        a.machine.run("sh", "-ec", line.split("#")[0])
    assert "scentd" not in a.host.out("nft", "list", "ruleset").lower()
    for family in ("-4", "-6"):
        assert "proto 83" not in a.host.out("ip", family, "rule")
        assert "proto 83" not in a.host.out("ip", family, "route", "show", "table", "all")
    assert not list((a.machine.directory / "bpf").glob("scentd*"))
    for path in ("etc/scentd", "var/lib/scentd", "opt/scentd", "usr/bin/scentd", "usr/share/doc/scentd"):
        assert not (a.machine.root / path).exists(), path
    for path in (f"etc/systemd/system/{unit.name}" for unit in UNITS.glob("*.service")):
        assert not (a.machine.root / path).exists(), path
    assert "scentd" not in a.machine.out("systemctl", "list-units", "--all", "--plain", "--no-legend", "scentd*")
