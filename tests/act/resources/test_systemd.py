"""Instances of template units, on a real systemd with a real D-Bus."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from hosts import ROOT
from machine import Machine
from topology import Topology
from tree import LIBRARIES, NOT_SOURCE, UNITS, Tree

from scentd.act.resources.systemd import SystemdResource

INSIDE = """
import json, sys
sys.path[:0] = ["/opt/checkout", "/opt/scentd-libraries"]
from pathlib import Path
from scentd.act.actuator import Tally
from scentd.act.resources.backend import BackendSetting
from scentd.act.resources.systemd import SystemdBackend, SystemdResource
template, amount = sys.argv[1], float(sys.argv[2])
resource = SystemdResource(name="r", maximum=4.0, template=template, timeout=3.0, settle=0.5)
backend = SystemdBackend(resource, BackendSetting({"b": ()}, Path("/tmp"), Tally()))
said = ""
try:
    if amount >= 0:
        backend.change("b", amount)
except Exception as error:
    said = type(error).__name__ + ": " + str(error)
print(json.dumps([said, backend.observe()]))
"""
TEMPLATES = {
    "good-b@": "[Service]\nExecStart=/bin/sleep 1000\n",
    "dies-b@": "[Service]\nExecStart=/bin/false\n",
    "hangs-b@": "[Service]\nType=notify\nExecStart=/bin/sleep 1000\n",
}


class Plain(Tree):
    """With the checkout, not installed: what is tested is the back end, not the daemon."""

    def install(self, root):
        shutil.copytree(ROOT, root / "opt/checkout", ignore=shutil.ignore_patterns(*NOT_SOURCE))
        (root / LIBRARIES[1:]).mkdir()


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    directory = tmp_path_factory.mktemp("units")
    with (
        Plain(directory / "tree") as tree,
        Topology("un") as net,
        Machine(net.host("a"), directory / "machine", tree) as machine,
    ):
        units = machine.root / "etc/systemd/system"
        for name, text in TEMPLATES.items():
            (units / f"{name}.service").write_text(text)
        (units / "masked-b@.service").symlink_to("/dev/null")
        (units / "sandboxed.service").write_text(sandboxed())
        (machine.root / "opt/inside.py").write_text(INSIDE)
        machine.boot()
        yield machine


def sandboxed():
    """The shipped unit's confinement around the back end alone."""
    kept = [
        line
        for line in (UNITS / "scentd.service").read_text().splitlines()
        if not re.match("Exec|Type|NotifyAccess|Watchdog|Restart(?!rict)|SuccessExit|After|Wants", line)
    ]
    run = "Type=oneshot\nExecStart=python3 -B /opt/inside.py good-{peer}@.service 2"
    return "\n".join(kept).replace("[Service]", f"[Service]\n{run}")


def ask(machine, kind, amount=-1):
    said, amounts = json.loads(machine.out("python3", "/opt/inside.py", f"{kind}-{{peer}}@.service", str(amount)))
    return said, amounts["b"]


@pytest.mark.netns
@pytest.mark.alone
def test_instances_start_and_stop_and_those_of_others_count(machine):
    assert ask(machine, "good", 2) == ("", 2)
    assert machine.show("good-b@2", "ActiveState") == "active"
    machine.run("systemctl", "start", "good-b@7")
    assert ask(machine, "good") == ("", 3)
    assert ask(machine, "good", 3) == ("", 3)
    assert ask(machine, "good", 1) == ("", 1)
    assert machine.show("good-b@1", "ActiveState") == "active"
    machine.run("systemctl", "stop", "good-b@1")
    assert ask(machine, "good", 0) == ("", 0)


@pytest.mark.netns
@pytest.mark.alone
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("dies", "HostError: unit dies-b@1.service: .*systemctl status dies-b@1.service"),
        ("hangs", "HostError: unit hangs-b@1.service: did not start within 3 s"),
        ("masked", "Refused: unit masked-b@1.service: is masked"),
        ("missing", "Refused: unit missing-b@1.service: does not exist"),
    ],
)
def test_what_does_not_run_is_told(machine, kind, said):
    text, amount = ask(machine, kind, 1)
    assert amount == 0

    assert re.match(said, text), text


@pytest.mark.netns
@pytest.mark.alone
def test_it_works_in_the_sandbox_of_the_shipped_unit(machine):
    try:
        machine.run("systemctl", "start", "sandboxed")
        assert '["", {"b": 2.0}]' in machine.log("sandboxed")
        assert machine.show("good-b@2", "ActiveState") == "active"
    finally:
        machine.run("systemctl", "stop", "good-b@1", "good-b@2")


@pytest.mark.netns
@pytest.mark.alone
def test_without_a_bus(machine):
    machine.run("systemctl", "stop", "dbus.socket", "dbus.service")
    try:
        done = machine.run("python3", "/opt/inside.py", "good-{peer}@.service", "-1", check=False)
        assert "HostError: systemd: cannot reach D-Bus" in done.stderr
    finally:
        machine.run("systemctl", "start", "dbus.socket")


@pytest.mark.parametrize(
    ("more", "setting"),
    [
        ({"template": "worker.service"}, "template"),
        ({"template": "worker@.service"}, "template"),
        ({"template": "w-{peer}@.service", "instances": ("a",)}, "instances"),
        ({"template": "w-{peer}@.service", "instances": ("a/b", "c")}, "instances"),
        ({"template": "w-{peer}@.service", "timeout": 0.0}, "timeout"),
    ],
)
def test_mistakes_name_the_setting(more, setting):
    problems = SystemdResource(name="r", maximum=2.0, **more).mistakes("resource[0]")
    assert any(problem.startswith(f"resource[0].{setting}:") for problem in problems)
