"""The story of scripts/demo, whole and interrupted: what it says of itself, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import netns

pytestmark = pytest.mark.netns

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


def start(temporary: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [DEMO, "--no-setup", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHON": sys.executable, "TMPDIR": str(temporary)},
    )


def left_behind(process: subprocess.Popen[str], temporary: Path) -> list[str]:
    """Namespaces, files and processes with the names of that run: the script becomes the demo, so by its id."""
    prefix = f"scdemo-{process.pid}-"
    names = [name for name in netns.listnetns() if name.startswith(prefix)]
    return names + [str(path) for path in temporary.iterdir()] + list(processes(prefix))


def processes(text: str) -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended meanwhile
            continue
        if text in line:
            yield line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_story_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path)
    assert process.stderr is not None
    for line in process.stderr:
        if "(a) HTTP" in line:  # both daemons run
            break
    assert any(name.startswith(f"scdemo-{process.pid}-") for name in netns.listnetns())
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert json.loads(out.splitlines()[-1])["ok"] is False
    assert left_behind(process, tmp_path) == []


def test_the_whole_story(tmp_path: Path) -> None:
    began = time.monotonic()
    process = start(tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-4000:]
    assert time.monotonic() - began < 60
    result = json.loads(out.splitlines()[-1])
    assert result["ok"] is True
    assert result["failed"] == []
    assert result["datapath"] == "nfqueue"
    assert result["families"] == ["ipv4", "ipv6"]
    assert min(result[name] for name in ("stamped", "accepted", "profiles", "absent")) > 0
    assert result["options_seen_by_application"] == 0
    assert set(result["rejected"]) >= REASONS
    assert {d["action"] for d in result["decisions"]} >= {"bandwidth", "quarantine", "release"}
    assert result["bandwidth_mbit"]["after"] > result["bandwidth_mbit"]["before"] > 0
    assert 0 < result["alarm_to_drop_ms"] < 1000
    assert left_behind(process, tmp_path) == []
