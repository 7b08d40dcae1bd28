"""The checks on this very host, and their judgement on values of other hosts."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import confined
import pytest

from scentd import doctor, examine, probe
from scentd.datapath import rules
from scentd.doctor import Check

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def checked():
    return {check.name: check for check in doctor.checks()}


@pytest.mark.netns
def test_this_host_can_run_scentd(checked):
    assert [check for check in checked.values() if check.ok == "no"] == []


@pytest.mark.netns
@pytest.mark.parametrize("name", ["NFQUEUE", "ipset", "redirect rules", "ip rule", "nftables", "HTB", "receive buffer"])
def test_the_kernels_features_were_really_tried(checked, name):
    assert checked[name].ok == "yes"


@pytest.mark.netns
def test_every_check_that_is_not_yes_names_a_way_out(checked):
    assert len(checked) >= 20
    assert all(check.found for check in checked.values())
    assert [c.name for c in checked.values() if (c.ok == "yes") != (c.way_out == "")] == []


@pytest.mark.netns
def test_the_hosts_network_is_left_alone():
    def state():
        commands = (["iptables", "-t", "mangle", "-S"], ["ip", "rule"], ["tc", "qdisc"], ["nft", "list", "tables"])
        return [subprocess.run(c, capture_output=True, text=True, check=True).stdout for c in commands]

    before = state()
    assert {check.ok for check in doctor.probed()} <= {"yes", "warning"}
    assert state() == before


@pytest.mark.netns
def test_the_probes_try_every_match_and_target_of_our_rules():
    """A new extension in datapath/rules.py must be tried by the doctor, too."""
    builtin = {"RETURN", "ACCEPT", "DROP"}
    for family in (4, 6):
        lines = [line for table in rules.wanted(probe.sample_config(), family).values() for line in table]
        used = set(re.findall(r"-[mj] ([\w-]+)", "\n".join(lines)))
        own = {name for name in used if rules.OWN_CHAIN.match(name)}
        tried = {e for e, (families, _, _) in probe.EXTENSIONS.items() if family in families}
        assert used - own - builtin == tried


def test_without_privileges_the_doctor_says_so():
    """As nobody: an answer with ways out and exit status 1, not a traceback."""
    unit = {"CapabilityBoundingSet": [""], "NoNewPrivileges": ["yes"], "MemoryDenyWriteExecute": ["no"]}
    unit |= {
        "SystemCallFilter": ["@system-service"],
        "RestrictAddressFamilies": ["AF_UNIX AF_NETLINK AF_INET AF_INET6"],
    }
    code = "import sys; from scentd import doctor; sys.exit(doctor.run(True, None))"
    done = confined.run(unit, [sys.executable, "-c", code])
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert found["ok"] is False
    wrong = {check["name"]: check for check in found["checks"] if check["ok"] == "no"}
    assert "CAP_NET_ADMIN" in wrong["capabilities"]["found"]
    assert "run as root" in wrong["network namespace"]["way_out"]


def test_a_probe_that_dies_is_a_finding(monkeypatch, tmp_path):
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\necho \'["NFQUEUE", "yes", "bound", ""]\'\nkill -SEGV $$\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    first, second = doctor.probed()
    assert first.ok == "yes"
    assert (second.ok, "after NFQUEUE" in second.found) == ("no", True)


# ---- the configuration ----


def test_a_wrong_configuration_is_told_with_its_mistakes(tmp_path):
    path = tmp_path / "scentd.toml"
    path.write_text("[daemon]\nstate_dri = 1\n[verify]\nmax_age = 5\n")
    check, loaded = doctor.check_config(str(path))
    assert (check.ok, loaded) == ("no", None)
    assert "state_dri" in check.found
    assert "max_age" in check.found


def test_the_configurations_state_directory_is_looked_at(tmp_path):
    path = tmp_path / "scentd.toml"
    path.write_text('[daemon]\nstate_dir = "/proc/scentd"\n')
    _, loaded = doctor.check_config(str(path))
    assert examine.check_state_dir(Path(loaded.daemon.state_dir)).ok == "no"


# ---- the report ----

SOME = [Check("one", "yes", "here"), Check("two", "warning", "odd", "turn it"), Check("three", "no", "gone", "buy it")]


def test_the_exit_status_counts_what_is_essential():
    assert doctor.exit_status(SOME) == 1
    assert doctor.exit_status(SOME[:2]) == 0


def test_json():
    made = json.loads(json.dumps(doctor.to_dict(SOME)))
    assert made["ok"] is False
    assert made["checks"][2] == {"name": "three", "ok": "no", "found": "gone", "way_out": "buy it"}


def test_the_table_has_a_way_out_below_what_is_wrong():
    lines = doctor.render(SOME).splitlines()
    assert lines[0] == "yes      one    here"
    assert lines[2].strip() == "-> turn it"
    assert lines[-1] == "scentd will not work here: 1 missing, 1 warnings"


@pytest.mark.netns
def test_the_command():
    argv = [sys.executable, "-m", "scentd", "doctor", "--json"]
    done = subprocess.run(
        argv, cwd=ROOT, env={**os.environ, "PYTHONPATH": "."}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"] is True
