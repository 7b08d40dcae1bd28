"""The story of scripts/demo with and without the offload, whole and interrupted: what it says of itself, and that it
leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from pyroute2 import netns

# It measures the load of the machine itself, and decides by it.
pytestmark = [pytest.mark.netns, pytest.mark.alone]

DEMO = Path(__file__).resolve().parents[2] / "scripts" / "demo"
REASONS = {
    "malformed",
    "unsupported-version",
    "unknown-key",
    "wrong-address",
    "bad-tag",
    "stale",
    "replayed-epoch",
}
DATAPATHS = {"auto": "nfqueue+ebpf", "off": "nfqueue"}  # by --offload


def start(temporary: Path, offload: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [DEMO, "--no-setup", "--json", "--offload", offload],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHON": sys.executable, "TMPDIR": str(temporary)},
    )


def left_behind(process: subprocess.Popen[str], temporary: Path) -> list[str]:
    """Namespaces, mounts, files and processes with the names of that run: the script becomes the demo, so by its id."""
    prefix = f"scdemo-{process.pid}-"
    names = [name for name in netns.listnetns() if name.startswith(prefix)]
    return names + bpffs(prefix) + [str(path) for path in temporary.iterdir()] + list(processes(prefix))


def bpffs(text: str) -> list[str]:
    """BPF file systems with the text in their place."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [place for _, place, kind, *_ in mounts if kind == "bpf" and text in place]


def processes(text: str) -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended meanwhile
            continue
        if text in line:
            yield line


class Telling(NamedTuple):
    process: subprocess.Popen[str]
    temporary: Path


@pytest.fixture(scope="module")
def telling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, bool], Telling]]:
    """By --offload and whether it is interrupted, four stories told at the same time: most of it is waiting."""
    running = {}
    for offload in DATAPATHS:
        for interrupted in (True, False):
            place = tmp_path_factory.mktemp(offload)
            running[offload, interrupted] = Telling(start(place, offload), place)
    yield running
    for process, _ in running.values():
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize(("number", "offload"), [(signal.SIGINT, "auto"), (signal.SIGTERM, "off")])
def test_an_interrupted_story_leaves_nothing_behind(
    telling: dict[tuple[str, bool], Telling], number: signal.Signals, offload: str
) -> None:
    process, tmp_path = telling[offload, True]
    assert process.stderr is not None
    for line in process.stderr:
        if "(a) HTTP" in line:  # both daemons run
            break
    prefix = f"scdemo-{process.pid}-"
    namespaces = [name for name in netns.listnetns() if name.startswith(prefix)]
    mounted = bpffs(prefix)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert namespaces
    assert bool(mounted) == (offload == "auto")
    assert process.returncode == 130, err
    result = json.loads(out.splitlines()[-1])
    assert result["ok"] is False
    assert result["datapath"] == DATAPATHS[offload]
    assert left_behind(process, tmp_path) == []


@pytest.mark.parametrize("offload", DATAPATHS)
def test_the_whole_story(telling: dict[tuple[str, bool], Telling], offload: str) -> None:
    process, temporary = telling[offload, False]
    out, story = process.communicate(timeout=120)
    result, left = json.loads(out.splitlines()[-1]), left_behind(process, temporary)
    assert process.returncode == 0, story[-6000:]
    assert result["ok"] is True
    assert result["failed"] == []
    assert result["datapath"] == DATAPATHS[offload], result["why_not"]
    assert result["families"] == ["ipv4", "ipv6"]
    assert min(result[name] for name in ("stamped", "accepted", "profiles", "absent")) > 0
    assert result["options_seen_by_application"] == 0
    assert set(result["rejected"]) >= REASONS
    assert {d["action"] for d in result["decisions"]} >= {"amount", "quarantine", "release"}
    assert result["bandwidth_mbit"]["after"] > result["bandwidth_mbit"]["before"] > 0
    assert result["alarm_to_drop_ms"] > 0
    assert left == []


def test_the_story_of_a_fleet(tmp_path):
    """Its checks are the test: who acts, who issues, the longest gap, nothing lost, refused or issued twice."""
    argv = [DEMO, "--no-setup", "--json", "--fleet"]
    environment = {**os.environ, "PYTHON": sys.executable, "TMPDIR": str(tmp_path)}
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=240, check=False)
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["ok"], result["failed"], done.returncode) == (True, [], 0), done.stderr
    assert 0 < result["gap_s"] <= 13
    assert list(tmp_path.iterdir()) == []
