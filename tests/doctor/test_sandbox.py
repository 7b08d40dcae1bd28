"""What is taken from the unit's text, and the checks on this host. tests/systemd/ has them in the unit's sandbox."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scentd.config.sections import Config, Network
from scentd.doctor import run, sandbox
from scentd.doctor.examine import Check

UNIT = Path(__file__).parents[2] / "systemd" / "scentd.service"
DROP_IN = """
# /etc/systemd/system/scentd.service.d/own.conf
[Service]
ReadWritePaths=/run/one \\
  /run/two
ExecStart=
ExecStart=-/opt/other/scentd run --config /etc/other.toml
[Unit]
After=other.service
"""


def test_the_lines_of_the_service_are_taken_and_no_others():
    lines = list(sandbox.service_lines(UNIT.read_text() + DROP_IN))
    assert "ProtectSystem=strict" in lines
    assert [line.split() for line in lines if "/run/one" in line] == [["ReadWritePaths=/run/one", "/run/two"]]
    assert [line for line in lines if line.startswith(("After", "Wants", "WantedBy", "#"))] == []


def test_every_line_about_the_sandbox_is_put_on():
    """What is left out is named here: a new line of the unit must be on one of the two sides."""
    left_out = [line for line in sandbox.service_lines(UNIT.read_text()) if line.startswith(sandbox.OTHERS)]
    assert {line.partition("=")[0] for line in left_out} == {
        *("Type", "NotifyAccess", "ExecStartPre", "ExecStart", "ExecReload", "ExecStopPost", "Restart", "RestartSec"),
        *("RestartPreventExitStatus", "RestartForceExitStatus", "SuccessExitStatus", "TimeoutStartSec"),
        *("TimeoutStopSec", "WatchdogSec", "KillMode"),
        *("RuntimeDirectory", "RuntimeDirectoryMode", "RuntimeDirectoryPreserve"),
    }


@pytest.mark.parametrize(
    ("start", "argv"),
    [
        (
            "/usr/bin/scentd run --config /a b",
            ["/usr/bin/scentd", "doctor", "--here", "--json", "--config", "/a"],
        ),
        ("-/opt/scentd run", ["/opt/scentd", "doctor", "--here", "--json"]),
    ],
)
def test_the_units_own_program_and_configuration_are_used(start, argv):
    assert sandbox.doctor_command(start) == argv


def test_without_systemd_or_a_unit_there_is_nothing_to_say(monkeypatch, tmp_path):
    monkeypatch.setattr(sandbox, "BOOTED", tmp_path / "none")
    assert sandbox.checks() == []


def test_key_files_are_read(tmp_path):
    config = Config(network=[Network(name="n", key_file=str(tmp_path / "key"))])
    check = sandbox.here(Check("configuration", "yes", ""), config)[1]
    assert (check.name, check.ok) == ("configuration", "no")
    assert str(tmp_path / "key") in check.found


@pytest.mark.netns
def test_a_map_is_pinned_and_nothing_is_left(tmp_path):
    subprocess.run(["mount", "-t", "bpf", "scentd-test", str(tmp_path)], check=True)
    try:
        assert sandbox.check_pins(str(tmp_path / "scentd")).ok == "yes"
        assert not (tmp_path / "scentd").exists()
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        check = sandbox.check_pins(str(tmp_path / "scentd"))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert check.ok == "warning"
    assert "Read-only file system" in check.found
    assert "ProtectKernelTunables" in check.found


@pytest.mark.netns
def test_a_directory_on_no_bpf_file_system_is_told_apart(tmp_path):
    check = sandbox.check_pins(str(tmp_path / "scentd"))
    assert check.ok == "warning"
    assert "not on a BPF file system" in check.found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.netns
def test_the_command(tmp_path):
    argv = [sys.executable, "-P", "-m", "scentd", "doctor", "--here", "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert [c["name"] for c in json.loads(done.stdout)["checks"]][:1] == ["capabilities"], done.stderr
    assert run.run(True, None, here=True) == done.returncode
