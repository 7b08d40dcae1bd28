"""scripts/bench runs and says what it promises to say. How fast anything is, is not tested."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "scripts" / "bench"


def bench(*argv):
    done = subprocess.run([BENCH, *argv], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def namespaces():
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in listed.splitlines() if line.startswith("scbench-")}


def assert_spread(value):
    assert value["min"] <= value["median"] <= value["max"]


def test_profiles():
    text = bench("profiles", "--quick", "--json")
    result = json.loads(text.splitlines()[-1])
    steps = {"issue": {"score", "bloom", "encode", "sign", "seal"}, "verify": {"unseal", "check", "decode", "view"}}
    for what, expected in steps.items():
        rows = {r["step"]: r for r in result["rows"] if r["what"] == what}
        assert rows.keys() >= expected | {"whole"}
        for row in rows.values():
            assert row["us"]["median"] > 0
            assert_spread(row["us"])
        assert result["per_second"][what] == round(1e6 / rows["whole"]["us"]["median"])
    assert result["goals"] == {"issue": 10_000, "verify": 5_000}
    assert "profiles/s on one core" in text


@pytest.mark.netns
def test_nfqueue():
    before = namespaces()
    text = bench("nfqueue", "--quick", "--json")
    result = json.loads(text.splitlines()[-1])
    wanted = {(w, f, s) for w in ("stamp", "verify") for f in (4, 6) for s in ("small", "full")}
    queued = [r for r in result["rows"] if "ratio" in r]
    alone = [r for r in result["rows"] if "ratio" not in r]
    for rows in (queued, alone):
        assert {(r["what"], r["family"], r["size"]) for r in rows} == wanted
    for row in queued:
        for kind in ("accept", "ours"):
            for number in ("us", "pps"):
                assert row[kind][number]["min"] > 0
                assert_spread(row[kind][number])
    assert result["ratio"].keys() == {"stamp_ipv4", "stamp_ipv6", "verify_ipv4", "verify_ipv6"}
    assert all(ratio > 0 for ratio in result["ratio"].values())
    assert result["two_queues"]["pps"]["ratio"]["median"] > 0
    assert result["goals"].keys() == result["ratio"].keys() | {"two_queues"}
    assert namespaces() <= before, "the namespaces are left behind"


@pytest.mark.parametrize("argv", [["--help"], ["nfqueue", "--help"], ["profiles", "--help"]])
def test_help(argv):
    assert "usage:" in bench(*argv)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to stop being it")
def test_without_root_it_says_why():
    done = subprocess.run([BENCH, "nfqueue", "--quick"], capture_output=True, text=True, check=False, user=65534)
    assert done.returncode != 0
    assert "needs root" in done.stderr or "Permission denied" in done.stderr
