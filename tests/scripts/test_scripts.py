"""scripts/setup, scripts/test and .ci/run, and the contracts in setup.cfg that lint-imports enforces.

Only the error paths and the quick path of setup run here, on a copy; what it installs is tested by using it.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [ROOT / "scripts" / "setup", ROOT / "scripts" / "test", ROOT / ".ci" / "run"]
SHELL = ("bash", "cat", "cut", "dirname", "grep", "pwd", "sha256sum", "sort")


@pytest.fixture
def checkout(tmp_path):
    """What scripts/setup reads, and nothing else."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__", "bench"))
    for name in ("setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "bpf").mkdir()
    (tmp_path / "bpf" / "Makefile").write_text("all:\n")
    tmp_path.chmod(0o755)
    return tmp_path


def bash(argv: list[str], **more) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", *argv], capture_output=True, text=True, timeout=60, check=False, **more)


def sourced(checkout: Path, commands: str) -> subprocess.CompletedProcess[str]:
    """Commands that use the functions of scripts/setup."""
    return bash(["-c", f"source scripts/setup; {commands}"], cwd=checkout)


def edit(checkout: Path, old: str, new: str) -> None:
    path = checkout / "scripts" / "setup"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.name)
def test_scripts_are_strict_executable_bash(script):
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text
    assert bash(["-n", str(script)]).stderr == ""
    assert str(ROOT) not in text


# ---- setup ----


def test_setup_without_a_package_manager_says_so(checkout, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for name in SHELL:
        (few / name).symlink_to(shutil.which(name))
    done = bash(["scripts/setup"], cwd=checkout, env={"PATH": str(few)})
    assert done.returncode == 1
    assert "no dpkg here" in done.stderr


def test_setup_with_an_old_python_names_both_versions(checkout):
    edit(checkout, "NEEDED='3.11'", "NEEDED='9.9'")
    edit(checkout, "wanted+=(python3 python3-venv python3-dev)", ":")
    edit(checkout, "PACKAGES=(", "PACKAGES=(bash); OTHERS=(")
    done = bash(["scripts/setup"], cwd=checkout)
    assert done.returncode == 1
    assert "Python is too old: Python 3." in done.stderr
    assert ">= 9.9" in done.stderr
    assert not (checkout / ".venv").exists()


def test_setup_as_another_user_names_what_is_missing(checkout):
    edit(checkout, "PACKAGES=(", "PACKAGES=(no-such-package-of-scentd ")
    argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "bash", "scripts/setup"]
    for path in (checkout, *checkout.parents):
        if path.owner() == "root" and path not in (Path("/"), Path("/tmp")):  # noqa: S108
            path.chmod(path.stat().st_mode | 0o055)
    done = subprocess.run(argv, cwd=checkout, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "run as root: these packages are missing: no-such-package-of-scentd" in done.stderr


def test_setup_is_quick_when_all_is_there(checkout):
    edit(checkout, "PACKAGES=(", "PACKAGES=(bash); OTHERS=(")
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "scentd").symlink_to("/bin/true")
    assert sourced(checkout, 'fingerprint "$(find_python)" >$STAMP').returncode == 0
    done = bash(["scripts/setup"], cwd=checkout)
    assert (done.returncode, done.stderr) == (0, "setup: ready: nothing to do\n")


@pytest.mark.parametrize("name", ["setup.cfg", "pyproject.toml", "scripts/setup"])
def test_a_change_makes_the_environment_anew(checkout, name):
    command = 'fingerprint "$(find_python)"'
    before = sourced(checkout, command).stdout
    assert len(before) == 65
    assert sourced(checkout, command).stdout == before
    with (checkout / name).open("a") as file:
        file.write("\n")
    assert sourced(checkout, command).stdout not in ("", before)


def test_the_python_found_is_usable(checkout):
    found = sourced(checkout, "find_python").stdout.strip()
    code = "import sys, venv; print(sys.version_info >= (3, 11))"
    assert subprocess.run([found, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"


@pytest.mark.parametrize(("installs", "status"), [("true", 0), ("false", 1)])
def test_daemons_are_not_started_and_nothing_is_left_behind(checkout, installs, status):
    """While apt-get runs (here it only looks) there is a policy-rc.d that says no; afterwards there is none."""
    policy = checkout / "policy-rc.d"
    edit(checkout, "POLICY=/usr/sbin/policy-rc.d", f"POLICY={policy}")
    look = f'apt_get() {{ "$POLICY"; echo "policy $?"; {installs}; }}'
    done = sourced(checkout, f"{look}; install_packages some")
    assert done.returncode == status
    assert "policy 101" in done.stdout
    assert not policy.exists()


def test_the_hosts_own_policy_is_left_alone(checkout):
    policy = checkout / "policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 7\n")
    edit(checkout, "POLICY=/usr/sbin/policy-rc.d", f"POLICY={policy}")
    assert sourced(checkout, "apt_get() { true; }; install_packages some").returncode == 0
    assert policy.read_text() == "#!/bin/sh\nexit 7\n"


# ---- test ----


@pytest.mark.parametrize(("fails", "status"), [("", 0), ("ruff", 1), ("gen-vectors", 1), ("pytest", 1)])
def test_the_exit_status_is_honest(checkout, fails, status):
    """Every step runs, and one that fails fails the whole. The steps' programs are stand-ins that say their names."""
    binaries = checkout / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name in ("python", "lint-imports"):
        (binaries / name).write_text(
            f'#!/bin/sh\necho "ran {name} $*"\ncase "$*" in *"{fails or "no such"}"*) exit 3;; esac\n'
        )
        (binaries / name).chmod(0o755)
    (checkout / "scripts" / "setup").write_text("#!/bin/sh\n")
    done = bash(["scripts/test", "-k", "some thing"], cwd=checkout)
    assert done.returncode == status, done.stdout
    checks = ("ruff check", "ruff format", "mypy", "lint-imports", "vulture")
    for step in (*checks, *(f"gen-{name} --check" for name in ("layout", "vectors", "schema"))):
        assert step in done.stdout
    assert re.search(r"pytest .*-m not alone -k some thing\n", done.stdout)
    assert re.search(r"pytest .*-m alone -k some thing\n", done.stdout)
    assert ("FAILED with status 3" in done.stdout) == bool(fails)


def test_a_failed_setup_ends_it(checkout):
    (checkout / "scripts" / "setup").write_text("#!/bin/sh\nexit 1\n")
    done = bash(["scripts/test"], cwd=checkout)
    assert (done.returncode, done.stdout) == (1, "")


# ---- the layers ----


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    argv = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    env = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(argv, cwd=root, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_the_layers_hold():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("score.py", "import scentd.collect.proc"),
        ("decide.py", "from scentd.act import runner"),
        ("wire/tag.py", "from scentd import model"),
        ("act/runner.py", "import scentd.daemon"),
        ("datapath/worker.py", "import scentd.act.webhook"),
        ("newcomer.py", "x = 1"),
    ],
)
def test_a_wrong_import_is_found(tmp_path, where, line):
    shutil.copytree(ROOT / "scentd", tmp_path / "scentd", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    with (tmp_path / "scentd" / where).open("a") as file:
        file.write(f"\n{line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    assert "BROKEN" in done.stdout


def test_a_kernel_to_soak_on_must_be_there():
    done = bash(["scripts/soak", "links", "/nonexistent/boot/vmlinuz-6.1"], cwd=ROOT)
    assert done.returncode == 2
    assert "/nonexistent/boot/vmlinuz-6.1: cannot be read" in done.stderr


@pytest.mark.parametrize(("argv", "said"), [([], "name one kernel image"), (["/nonexistent"], "name one kernel image")])
def test_a_kernel_must_be_named(argv, said):
    done = bash(["scripts/try-kernel", *argv], cwd=ROOT)
    assert done.returncode == 2
    assert said in done.stderr
