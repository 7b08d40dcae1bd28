"""The checks on this very host, and their judgement on values of other hosts."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import confined
import pytest

from scentd.datapath.host import iptables, rules
from scentd.doctor import examine, marks, probe, run
from scentd.doctor.run import Check
from scentd.kinds import config_from

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checked():
    return {check.name: check for check in run.checks()}


@pytest.mark.netns
def test_this_host_can_run_scentd(checked):
    assert [check for check in checked.values() if check.ok == "no"] == []


@pytest.mark.netns
@pytest.mark.parametrize(
    "name", ["NFQUEUE", "redirect rules", "ip rule", "nftables", "HTB", "receive buffer", "offload"]
)
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
        commands = (["iptables", "-t", "raw", "-S"], ["ip", "rule"], ["tc", "qdisc"], ["nft", "list", "tables"])
        return [subprocess.run(c, capture_output=True, text=True, check=True).stdout for c in commands]

    before = state()
    assert {check.ok for check in run.probe_checks()} <= {"yes", "warning"}
    assert state() == before


@pytest.mark.netns
def test_the_probes_try_every_match_and_target_of_our_rules():
    """A new extension in datapath/rules.py must be tried by the doctor, too."""
    builtin = {"RETURN", "ACCEPT", "DROP"}
    for family in (4, 6):
        lines = [line for table in rules.build(probe.sample_config(), family).values() for line in table]
        used = set(re.findall(r"-[mj] ([\w-]+)", "\n".join(lines)))
        own = {name for name in used if iptables.OWN_CHAIN.match(name)}
        tried = {e for e, (families, _, _) in probe.EXTENSIONS.items() if family in families}
        assert used - own - builtin == tried


def test_without_privileges_the_doctor_says_so():
    """As nobody: an answer with ways out and exit status 1, not a traceback."""
    unit = {"CapabilityBoundingSet": [""], "NoNewPrivileges": ["yes"], "MemoryDenyWriteExecute": ["no"]}
    unit |= {
        "SystemCallFilter": ["@system-service"],
        "RestrictAddressFamilies": ["AF_UNIX AF_NETLINK AF_INET AF_INET6"],
    }
    code = "import sys; from scentd.doctor import run; sys.exit(run.run(True, None))"
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
    first, second = run.probe_checks()
    assert first.ok == "yes"
    assert (second.ok, "after NFQUEUE" in second.found) == ("no", True)


# ---- the configuration ----


def test_a_wrong_configuration_is_told_with_its_mistakes(tmp_path):
    path = tmp_path / "scentd.toml"
    path.write_text("[daemon]\nstate_dri = 1\n[verify]\nmax_age = 5\n")
    check, loaded = run.check_config(str(path))
    assert (check.ok, loaded) == ("no", None)
    assert "state_dri" in check.found
    assert "max_age" in check.found


def test_the_configurations_state_directory_is_looked_at(tmp_path):
    path = tmp_path / "scentd.toml"
    path.write_text('[daemon]\nstate_dir = "/proc/scentd"\n')
    _, loaded = run.check_config(str(path))
    assert examine.check_state_dir(Path(loaded.daemon.state_dir)).ok == "no"


# ---- the offload ----


@pytest.fixture
def bpffs(tmp_path):
    """A BPF file system of the test's own."""
    directory = tmp_path / "bpf"
    directory.mkdir()
    subprocess.run(["mount", "-t", "bpf", "scentd-test", str(directory)], check=True)
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


@pytest.mark.netns
def test_the_pin_directory_is_on_a_bpf_file_system(bpffs):
    before = sorted(bpffs.iterdir())
    for path in (bpffs, bpffs / "new" / "deep"):
        assert run.check_pin_dir(str(path)).ok == "yes"
    dotted = run.check_pin_dir(str(bpffs / "scentd.1"))
    assert (dotted.ok, "no dot in its name" in dotted.way_out) == ("warning", True)
    assert sorted(bpffs.iterdir()) == before


def test_a_pin_directory_elsewhere_is_told_the_way_out(tmp_path):
    check = run.check_pin_dir(str(tmp_path / "pins"))
    assert check.ok == "warning"
    assert f"{tmp_path} is on no BPF file system" in check.found
    assert "mount -t bpf bpf /sys/fs/bpf" in check.way_out


def test_a_host_whose_offload_is_off_is_not_asked_for_it(tmp_path):
    path = tmp_path / "scentd.toml"
    path.write_text('[datapath]\noffload = "off"\npin_dir = "/nowhere"\n')
    names = {check.name for check in run.checks(str(path))}
    assert "state directory" in names
    assert "pin directory" not in names


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ((Path("/no/stamp.bpf.o"), Path("/no/verify.bpf.o")), "not there: /no/stamp.bpf.o, /no/verify.bpf.o"),
        ((Path(__file__), Path(__file__)), "test_run.py"),
    ],
)
def test_objects_that_are_missing_or_no_objects_are_a_warning(monkeypatch, missing, said):
    monkeypatch.setattr(probe, "OBJECTS", missing)
    name, ok, found, way_out = probe.offload()
    assert (name, ok) == ("offload", "warning")
    assert said in found
    assert way_out


MARK = 0x40000000
RULES = {  # of others, as `iptables -S` prints them -> do they change bits of the mark?
    "-j MARK --set-xmark 0x5/0xffffffff": True,
    "-j MARK --set-xmark 0x5/0xff": False,
    "-j MARK --set-xmark 0x0/0xffffff00": True,
    "-j MARK --set-xmark 0x40000000/0x40000000": True,
    "-j MARK --set-xmark 0x40000000/0x0": True,
    "-i eth0 -p tcp -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff": True,
    "-j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff": False,
    "-j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff": False,
    "-j CONNMARK --set-xmark 0x5/0xffffffff": False,
    "-p tcp -j TPROXY --on-port 1 --on-ip 0.0.0.0 --tproxy-mark 0x1/0xffffffff": True,
    '-m comment --comment "it is not -j MARK --set-xmark 0x0/0xffffffff" -j ACCEPT': False,
}


@pytest.mark.parametrize("rule", RULES)
def test_rules_that_change_what_the_program_has_decided(rule):
    found = marks.changing(["-P PREROUTING ACCEPT", f"-A PREROUTING {rule}"], MARK)
    assert found == ([f"-A PREROUTING {rule}"] if RULES[rule] else [])


def test_only_rules_that_packets_from_outside_meet_before_ours():
    mark = "-j MARK --set-xmark 0x5/0xffffffff"
    lines = ["-P PREROUTING ACCEPT", "-N A", "-N B", "-N C", "-N SCENTD-IN"]
    lines += ["-A PREROUTING -j A", "-A PREROUTING -j SCENTD-IN", f"-A OUTPUT {mark}", f"-A SCENTD-IN {mark}"]
    lines += ["-A A -g B", f"-A A {mark}", "-A B -j A", f"-A B {mark}", f"-A C {mark}"]
    assert marks.changing(lines, MARK) == [f"-A A {mark}", f"-A B {mark}"]


@pytest.mark.netns
def test_the_hosts_real_rules_are_read():
    """In a namespace of its own: a rule of each kind, once without and once with a mask."""
    code = """
import ctypes, json, subprocess
from scentd.config.sections import Datapath
from scentd.doctor import marks
assert ctypes.CDLL(None).unshare(0x40000000) == 0
def found():
    check = marks.check_marks(Datapath())
    return check.ok, check.found
answers = [found()]
for program in ("iptables", "ip6tables"):
    argv = [program, "-w", "5", "-t", "raw", "-A", "PREROUTING", "-j", "MARK", "--set-mark"]
    subprocess.run([*argv, "5/0xff"], check=True)
    answers.append(found())
    subprocess.run([*argv, "5"], check=True)
    answers.append(found())
    argv[argv.index("-A")] = "-D"
    subprocess.run([*argv, "5"], check=True)
for family in ("ip", "inet"):
    chain = family + " theirs pre { type filter hook prerouting priority %s; }"
    for priority, rule in ((-150, "meta mark set ct mark"), (-300, "meta mark set ct mark")):
        subprocess.run(["nft", "add", "table", family, "theirs"], check=True)
        subprocess.run(["nft", "add", "chain", *(chain % priority).split()], check=True)
        subprocess.run(["nft", "add", "rule", family, "theirs", "pre", *rule.split()], check=True)
        answers.append(found())
        subprocess.run(["nft", "delete", "table", family, "theirs"], check=True)
print(json.dumps(answers))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert [ok for ok, _ in answers] == ["yes", *["yes", "warning"] * 4]
    told = [found.split(":")[0] for ok, found in answers if ok == "warning"]
    assert [text.partition(" -A ")[0] for text in told] == [
        "iptables -t raw",
        "ip6tables -t raw",
        "nft table ip theirs, chain pre",
        "nft table inet theirs, chain pre",
    ]


RULESET = """table inet scentd_path {
	chain in {
		type filter hook prerouting priority -301; policy accept;
		meta mark set meta mark | 0x40000000
	}
}
table ip raw {
	chain PREROUTING {
		type filter hook prerouting priority -300; policy accept;
		meta mark set 0x00000003
	}
}
table inet theirs {
	chain early {
		type filter hook prerouting priority -300; policy accept;
		meta l4proto udp meta mark set meta mark & 0x000000ff
		meta mark set meta mark | 0x00000004 counter
		ct mark set meta mark
		tcp dport { 5, 6 } jump inner
	}
	chain inner {
		meta mark set meta mark & 0x0000ff05 | 0x00000005
		goto outer
	}
	chain outer {
		meta mark set meta mark ^ 0x40000000
	}
	chain late {
		type filter hook prerouting priority -150; policy accept;
		meta mark set ct mark
	}
	chain alone {
		meta mark set 0x00000005
	}
}
"""


def test_rules_of_nftables_that_change_what_was_decided():
    found = [line.rpartition(": ")[2] for line in marks.changing_nftables(RULESET, MARK)]
    assert found == [
        "meta l4proto udp meta mark set meta mark & 0x000000ff",
        "meta mark set meta mark & 0x0000ff05 | 0x00000005",
        "meta mark set meta mark ^ 0x40000000",
    ]


# ---- the report ----

SOME = [Check("one", "yes", "here"), Check("two", "warning", "odd", "turn it"), Check("three", "no", "gone", "buy it")]


def test_the_exit_status_counts_what_is_essential():
    assert run.exit_status(SOME) == 1
    assert run.exit_status(SOME[:2]) == 0


def test_json():
    made = json.loads(json.dumps(run.to_dict(SOME)))
    assert made["ok"] is False
    assert made["checks"][2] == {"name": "three", "ok": "no", "found": "gone", "way_out": "buy it"}


def test_the_table_has_a_way_out_below_what_is_wrong():
    lines = run.render(SOME).splitlines()
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


def test_room_for_the_scents_of_guests():
    assert run.check_room({}).ok == "yes"
    narrow = run.check_room({"br0": 1500})
    assert narrow.ok == "warning"
    assert "bridge br0 carries 1500 bytes" in narrow.found
    assert "carry 1540 bytes" in narrow.way_out


def test_what_quarantines_must_not_cut_off_is_to_be_named():
    policies = [{"name": "isolate", "when": "true", "do": {"kind": "quarantine"}}]
    assert run.check_protected(config_from({})) == []
    (risk,) = run.check_protected(config_from({"policy": policies}))
    assert (risk.ok, "allocator.protected" in risk.way_out) == ("warning", True)
    (fine,) = run.check_protected(config_from({"policy": policies, "allocator": {"protected": ["192.0.2.0/24"]}}))
    assert (fine.ok, fine.found) == ("yes", "no quarantine cuts off 192.0.2.0/24")
