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
from typing import Any, NamedTuple

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


class Ended(NamedTuple):
    status: int
    result: dict[str, Any]
    story: str
    left: list[str]


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


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Both stories by --offload, told at the same time: most of it is waiting."""
    places = {offload: tmp_path_factory.mktemp(offload) for offload in DATAPATHS}
    running = {offload: start(place, offload) for offload, place in places.items()}
    try:
        said = {offload: process.communicate(timeout=120) for offload, process in running.items()}
    finally:
        for process in running.values():
            process.terminate()
            process.wait(30)
    return {
        offload: Ended(
            process.returncode,
            json.loads(said[offload][0].splitlines()[-1]),
            said[offload][1],
            left_behind(process, places[offload]),
        )
        for offload, process in running.items()
    }


@pytest.mark.parametrize(("number", "offload"), [(signal.SIGINT, "auto"), (signal.SIGTERM, "off")])
def test_an_interrupted_story_leaves_nothing_behind(tmp_path: Path, number: signal.Signals, offload: str) -> None:
    process = start(tmp_path, offload)
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
def test_the_whole_story(told: dict[str, Ended], offload: str) -> None:
    status, result, story, left = told[offload]
    assert status == 0, story[-6000:]
    assert result["ok"] is True
    assert result["failed"] == []
    assert result["datapath"] == DATAPATHS[offload], result["why_not"]
    assert result["families"] == ["ipv4", "ipv6"]
    assert min(result[name] for name in ("stamped", "accepted", "profiles", "absent")) > 0
    assert result["options_seen_by_application"] == 0
    assert set(result["rejected"]) >= REASONS
    assert {d["action"] for d in result["decisions"]} >= {"bandwidth", "quarantine", "release"}
    assert result["bandwidth_mbit"]["after"] > result["bandwidth_mbit"]["before"] > 0
    assert result["alarm_to_drop_ms"] > 0
    assert left == []
