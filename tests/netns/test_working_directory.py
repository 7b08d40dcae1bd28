"""Nothing in the directory from which somebody starts scentd is run, though much there is named like its modules."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hosts import Node, environment
from topology import Topology

from scentd import cli
from scentd.system import python

pytestmark = pytest.mark.netns

MODULES = ("json", "msgspec", "socket", "typing", "logging", "argparse", "asyncio")
PROGRAM = Path(sys.executable).parent / "scentd"
ROOT = Path(__file__).parents[2]
STARTS = re.compile(r"sys\.executable")


@pytest.fixture
def planted(tmp_path) -> Path:
    """A directory whose modules leave a file when they are imported."""
    directory = tmp_path / "planted"
    directory.mkdir()
    for name in MODULES:
        (directory / f"{name}.py").write_text(trap(directory, name))
    (directory / "scentd").mkdir()
    for name in ("__init__", "cli", "__main__"):
        (directory / "scentd" / f"{name}.py").write_text(trap(directory, f"scentd.{name}"))
    return directory


def trap(directory: Path, name: str) -> str:
    return f"open({str(directory / 'ran')!r}, 'a').write({name!r} + ' ')\n"


def ran(planted: Path) -> str:
    file = planted / "ran"
    return file.read_text() if file.exists() else ""


ARGUMENTS = {
    "run": ["--help"],  # test_the_daemon_and_its_workers
    "guard": ["--listen", "/nonexistent/socket"],
    "exporter": ["--listen", "nowhere"],
    "explain": ["nobody"],
    "rules": ["show"],
    "decode": ["/nonexistent/capture"],
    "pubkey": ["--help"],  # it reads
}


def every_command() -> list[str]:
    (commands,) = [a.choices for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return sorted(commands)


@pytest.mark.parametrize("command", every_command())
def test_commands(planted, tmp_path, command):
    """Each runs to its end, whatever that is: without a daemon many fail."""
    with Topology("wd") as net:
        node = Node(net.host("a"), tmp_path)
        node.write()
        arguments = ARGUMENTS.get(command, [])
        done = node.host.run(
            *(str(PROGRAM), command, "--config", str(node.config), *arguments), cwd=planted, check=False, timeout=60
        )
        assert "Traceback" not in done.stderr
    assert ran(planted) == ""


def test_the_daemon_and_its_workers(planted, tmp_path):
    with Topology("wd") as net:
        node = Node(net.host("a"), tmp_path)
        net.link(node.host, net.host("b"), ipv4="10.1.0.0/24", ipv6="fd00:1::/64")
        node.write()
        with open(node.log, "ab") as log:
            argv = (str(PROGRAM), "run", "--config", str(node.config))
            node.process = node.host.start(*argv, env=environment(), stdout=log, stderr=log, cwd=planted)
        with node:
            node.wait_started()
            (worker,) = node.status()["workers"]
            assert Path(f"/proc/{worker}/cwd").readlink() == Path("/")
    assert ran(planted) == ""


def test_the_module_by_hand(planted):
    """`python -m scentd` without -P: Python itself finds our package there, if there is one, but we find nothing."""
    shutil.rmtree(planted / "scentd")
    done = subprocess.run(
        [sys.executable, "-m", "scentd", "keygen"], cwd=planted, check=False, capture_output=True, env=environment()
    )
    assert len(done.stdout) > 40
    assert ran(planted) == ""


def test_relative_and_empty_paths_of_modules(planted, monkeypatch):
    """PYTHONPATH="" or "." would mean the directory in which the child runs."""
    monkeypatch.chdir(planted)
    base = {**os.environ, "PYTHONPATH": f":.:{ROOT}:"}
    done = subprocess.run(
        [*python.command("scentd.datapath.queue.worker"), "none"], cwd=planted, check=False, capture_output=True,
        env=python.environment(base), text=True,
    )  # fmt: skip
    assert "none" in done.stderr, "it has begun, and found no descriptor"
    assert ran(planted) == ""


def test_a_checkout_that_is_not_installed(planted, tmp_path):
    """Its workers are found, too, although they run in another directory."""
    shutil.copytree(ROOT / "scentd", tmp_path / "checkout" / "scentd", ignore=shutil.ignore_patterns("__pycache__"))
    code = "from scentd.system import python; print(*python.command('x'), python.environment({})['PYTHONPATH'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "checkout", capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [sys.executable, "-P", "-m", "x", str(tmp_path / "checkout")]


def test_the_bench_and_the_demo(planted):
    for script in ("bench", "demo"):
        done = subprocess.run(
            [ROOT / "scripts" / script, "--help"], cwd=planted, capture_output=True, text=True, check=True, timeout=60
        )
        assert "usage" in done.stdout
        assert ran(planted) == ""


def test_every_python_process_that_we_start():
    """-P, or code on the command line that imports nothing; soak starts in a directory of ours."""
    for path in [*(ROOT / "scentd").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]:
        for line in path.read_text().splitlines():
            if STARTS.search(line) and "pip install" not in line:
                assert re.search(r'sys\.executable, "-P"|"-c", "while True: pass"', line), f"{path}: {line}"


def test_the_trap_works(planted):
    """A module that is found there leaves its file."""
    for name in ("json", "scentd"):
        subprocess.run([sys.executable, "-c", f"import {name}"], cwd=planted, check=False)
    assert ran(planted).split() == ["json", "scentd.__init__"]
