"""scripts/bench runs and says what it promises to say. How fast anything is, is not tested."""

import importlib
import json
import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "scripts" / "bench"


def run(*argv, timeout=60):
    return subprocess.run([BENCH, *argv], capture_output=True, text=True, timeout=timeout, check=False)


def bench(*argv, **more):
    done = run(*argv, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def benchmarks(monkeypatch):
    """Imports a module of the benchmarks."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def mounts():
    return {line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if "scentd-bench-" in line}


def namespaces():
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in listed.splitlines() if line.startswith("scbench-")}


def assert_spread(value):
    assert value["min"] <= value["median"] <= value["max"]


def test_fleet():
    result = json.loads(bench("fleet", "--quick", "--json", timeout=180).splitlines()[-1])
    for shape in ("one host", "NATS"):
        rows = {row["what"]: row for row in result["rows"] if row["shape"] == shape}
        change = rows["change to packet, s"]
        assert change["number"] == 2
        assert sum(row["number"] for what, row in rows.items() if what.startswith("alarm")) == 2
        assert 0 < change["p50"] <= change["p99"] < 5 * result["interval"]
    assert all(row["us"] > 0 for row in result["cost"])
    sends = {row["role"]: row["bytes"] > 0 for row in result["cost"]}
    assert sends == {"collector": True, "profiler": True, "near": False}
    assert {row["part"] for row in result["parts"]} == {"ingest", "aggregate", "quantise", "sign", "check"}
    for row in result["parts"]:
        assert_spread(row["us"])


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


@pytest.mark.netns
def test_dataplane():
    before = namespaces(), mounts()
    kinds = {"none": (4, 6), "floor": (4, 6), "ebpf": (4, 6), "srv6": (6,)}
    text = bench("dataplane", "--quick", "--json", "--kinds", ",".join(kinds), timeout=180)
    result = json.loads(text.splitlines()[-1])
    rows = {(r["load"], r["kind"], r["family"]): r for r in result["rows"]}
    loads = {"tcp": "gbit_s", "udp": "pps", "latency": "p50"}
    assert rows.keys() == {(load, kind, f) for load in loads for kind, families in kinds.items() for f in families}
    for (load, _, _), row in rows.items():
        assert row[loads[load]]["min"] > 0
        assert_spread(row[loads[load]])
    programs = {(r["program"], r["family"], r["load"]): r for r in result["programs"]}
    assert programs.keys() == {(p, f, load) for p in ("stamp", "verify") for f in (4, 6) for load in ("tcp", "udp")}
    assert all(r["ns"] > 0 and r["runs"] and r["instructions"] and r["jited_bytes"] for r in programs.values())
    for program in ("stamp", "verify", "assemble"):
        for family in (4, 6):
            sizes = [r["peers"] for r in result["peers"] if (r["program"], r["family"]) == (program, family)]
            assert sizes == [1, 1000, 100_000]  # a million: scripts/soak
    assert result["goals"].keys() <= result["ratio"].keys()
    assert result["left_out"] == {}
    measured = {name for name, value in result["ratio"].items() if value is not None}
    assert measured >= {
        "ebpf_tcp_ipv4",
        "ebpf_tcp_ipv6",
        "ebpf_udp",
        "floor_udp",
        "ebpf_over_srv6_tcp",
    }
    assert result["ratio"]["ebpf_over_wireguard_tcp"] is None
    assert (namespaces(), mounts()) == before, "something is left behind"


@pytest.mark.netns
def test_interfaces():
    before = namespaces(), mounts()
    text = bench("interfaces", "--quick", "--json", timeout=180)
    (row,) = json.loads(text.splitlines()[-1])["rows"]
    assert row["interfaces"] == 10
    for name in ("ready_s", "served_s", "come_ms", "go_ms", "stop_s", "stop_churn_s"):
        assert row[name]["min"] > 0
        assert_spread(row[name])
    assert_spread(row["come_cpu_ms"])
    assert "start to READY" in text
    assert (namespaces(), mounts()) == before


def test_ratios_are_of_the_same_round(benchmarks):
    report = benchmarks("dataplane_report")
    turns = {
        ("tcp", "none", 4): [{"gbit_s": n, "retransmits_per_gb": 1} for n in (10.0, 20.0, 5.0)],
        ("tcp", "ebpf", 4): [{"gbit_s": n, "retransmits_per_gb": 3} for n in (9.0, 20.0, 4.0)],
        ("tcp", "nfqueue", 4): [{"gbit_s": 1.0, "retransmits_per_gb": 0}] * 3,
    }
    found = report.ratios(turns)
    assert found["ebpf_tcp_ipv4"] == 0.9
    assert found["ebpf_tcp_ipv6"] is None
    assert found["tcp_retransmits_per_gb_added"] == 2
    assert found["ebpf_over_nfqueue_tcp"] == 9.0
    assert found["ebpf_over_wireguard_tcp"] is None


def test_a_kind_whose_tool_is_missing(benchmarks, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "apt-get install wireguard-go" in benchmarks("dataplane_kinds").WireGuard.missing()


def test_a_kind_that_is_none():
    done = run("dataplane", "--kinds", "none,carrier-pigeon")
    assert done.returncode == 2
    assert "'carrier-pigeon' is not one of none, floor, ebpf, nfqueue" in done.stderr


def test_a_figure(benchmarks, tmp_path):
    plot, error = benchmarks("plot"), benchmarks("lab").LabError
    with pytest.raises(error, match=r"must end in one of \.png"):
        plot.require(str(tmp_path / "figure.jpeg"))
    with pytest.raises(error, match="no such directory"):
        plot.require(str(tmp_path / "none" / "figure.png"))
    numbers = {"median": 2.0, "min": 1.0, "max": 3.0}
    rows = [{"load": load, "kind": "none", "family": 4, name: numbers} for load, name, *_ in plot.PANELS]
    peers = [{"program": p, "family": 4, "peers": 1, "hot": numbers, "spread": numbers} for p in plot.LINES]
    result = {"rows": rows, "peers": peers, "cores": 2, "kernel": "6.18", "rounds": 1}
    figure = tmp_path / "figure.png"
    if find_spec("matplotlib") is None:
        with pytest.raises(error, match=r"pip install -e '\.\[bench\]'"):
            plot.draw(result, str(figure))
    else:
        plot.draw(result, str(figure))
        assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "argv",
    [["--help"], ["dataplane", "--help"], ["nfqueue", "--help"], ["interfaces", "--help"], ["profiles", "--help"]],
)
def test_help(argv):
    assert "usage:" in bench(*argv)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to stop being it")
@pytest.mark.parametrize("suite", ["dataplane", "nfqueue", "interfaces"])
def test_without_root_it_says_why(suite):
    done = subprocess.run([BENCH, suite, "--quick"], capture_output=True, text=True, check=False, user=65534)
    assert done.returncode != 0
    assert "needs root" in done.stderr or "Permission denied" in done.stderr
