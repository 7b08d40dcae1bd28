"""bpf/Makefile makes the BPF objects, the package's build runs it and ships them; clang is needed nowhere else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scentd.datapath.offload.libbpf import Object
from scentd.files import WHAT

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = {
    "stamp.bpf.o": {"scent_stamp_l2", "scent_stamp_l3", "scent_stamp_port"},
    "verify.bpf.o": {"scent_verify_l2", "scent_verify_l3", "scent_verify_port"},
    "application.bpf.o": {"scent_application"},
}
OBJECTS = set(PROGRAMS)
NO_CLANG = {**os.environ, "CLANG": "no-such-clang"}


def copy(place: Path) -> Path:
    """What the package is built from, without what has been built."""
    ignore = shutil.ignore_patterns("__pycache__", "*.o")
    for name in ("bpf", "scentd", "systemd"):
        shutil.copytree(ROOT / name, place / name, ignore=ignore)
    for name in ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.cfg"):
        shutil.copy(ROOT / name, place)
    return place


@pytest.fixture
def checkout(tmp_path):
    return copy(tmp_path)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """One whose objects are made. Tests leave it so."""
    place = copy(tmp_path_factory.mktemp("built"))
    assert make(place, "--question").returncode == 1
    assert make(place).returncode == 0
    return place


def make(checkout: Path, *argv: str, **more) -> subprocess.CompletedProcess[str]:
    command = ["make", "-s", "-C", str(checkout / "bpf"), *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **more)


def setuptools(checkout: Path, *argv: str, **more) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "import setuptools; setuptools.setup()", *argv]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=120, check=False, **more)


def objects(directory: Path) -> set[str]:
    return {path.name for path in directory.rglob("*.o")}


# ---- make ----


def test_make_makes_objects_that_libbpf_opens(checkout):
    done = make(checkout)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    made = checkout / "scentd" / "datapath"
    assert objects(checkout) == objects(made) == OBJECTS
    for path in made.rglob("*.o"):
        assert b".BTF\0" in path.read_bytes()
        assert b".BTF.ext\0" in path.read_bytes()
        with Object(str(path)) as opened:
            assert set(opened.programs()) == PROGRAMS[path.name]
            assert opened.maps()


def test_the_place_of_the_checkout_is_not_in_the_objects(checkout, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(checkout / "bpf", elsewhere / "bpf")
    for root in (checkout, elsewhere):
        out = root / "out"
        out.mkdir()
        assert make(root, f"OUT={out}").returncode == 0
    for name in OBJECTS:
        made = (checkout / "out" / name).read_bytes()
        assert os.fsencode(checkout) not in made
        assert made == (elsewhere / "out" / name).read_bytes()


@pytest.mark.parametrize("changed", ["scent_wire.h", "scent_maps.h", "packet.h", "tag.h", "Makefile"])
def test_what_all_objects_depend_on_makes_them_anew(built, changed):
    """Of `make --question` the status says whether there is something to do."""
    assert make(built, "--question").returncode == 0
    older = (built / "bpf" / changed).stat().st_mtime_ns
    newer = max(path.stat().st_mtime_ns for path in built.rglob("*.o")) + 1_000_000
    os.utime(built / "bpf" / changed, ns=(newer, newer))
    assert make(built, "--question").returncode == 1
    os.utime(built / "bpf" / changed, ns=(older, older))


def test_without_clang_one_line_says_so(checkout):
    done = make(checkout, env=NO_CLANG)
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1
    assert "no-such-clang not found: install clang and libbpf-dev" in done.stderr
    assert objects(checkout) == set()


def test_without_clang_objects_that_are_there_will_do(built):
    assert make(built, env=NO_CLANG).returncode == 0


def test_a_warning_is_an_error_and_leaves_no_object(checkout):
    with (checkout / "bpf" / "stamp.bpf.c").open("a") as file:
        file.write("static int nobody_calls_it(void)\n{\n\treturn 0;\n}\n")
    done = make(checkout)
    assert done.returncode != 0
    assert "nobody_calls_it" in done.stderr
    assert "stamp.bpf.o" not in objects(checkout)


# ---- the package ----


def test_the_build_makes_and_ships_the_objects(checkout):
    done = setuptools(checkout, "build_py", "--build-lib", "out")
    assert done.returncode == 0, done.stderr
    assert objects(checkout / "out" / "scentd" / "datapath") == OBJECTS
    assert not (checkout / "out" / "bpf").exists()
    files = checkout / "out" / "scentd" / "files"
    assert {path.name for path in files.iterdir()} == set(WHAT)
    assert (files / "README.md").read_bytes() == (ROOT / "systemd" / "README.md").read_bytes()


def test_the_build_without_clang_fails_and_says_why(checkout):
    done = setuptools(checkout, "build_py", "--build-lib", "out", env=NO_CLANG)
    assert done.returncode != 0
    assert "no-such-clang not found: install clang and libbpf-dev" in done.stderr
    assert done.stderr.splitlines()[-1] == "error: the BPF objects were not made; the line of make above says why"
    assert "Traceback" not in done.stderr
    assert not (checkout / "out").exists()


def test_the_build_without_make_fails_and_says_why(checkout, tmp_path_factory):
    done = setuptools(checkout, "build_py", env={**os.environ, "PATH": str(tmp_path_factory.mktemp("empty"))})
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == "error: make not found: install make, clang and libbpf-dev"


def test_the_source_distribution_has_all_that_the_build_needs(checkout, tmp_path_factory):
    """Built from it alone the package has the objects."""
    assert make(checkout).returncode == 0
    done = setuptools(checkout, "sdist", "--formats=gztar")
    assert done.returncode == 0, done.stderr
    (archive,) = (checkout / "dist").iterdir()
    unpacked = tmp_path_factory.mktemp("unpacked")
    shutil.unpack_archive(archive, unpacked)
    (source,) = unpacked.iterdir()
    assert objects(source) == set()
    assert {p.name for p in (source / "bpf").iterdir()} == {
        p.name for p in (ROOT / "bpf").iterdir() if p.name != "__pycache__"
    }
    done = setuptools(source, "build_py", "--build-lib", "out")
    assert done.returncode == 0, done.stderr
    assert objects(source / "out") == OBJECTS
    assert (source / "out" / "scentd" / "files" / "scentd.service").is_file()


def contents(path: Path) -> list[bytes]:
    """Of a file, or of the files in a directory."""
    return [file.read_bytes() for file in (sorted(path.iterdir()) if path.is_dir() else [path])]


def test_a_wheel_says_where_its_files_are(checkout, tmp_path_factory):
    """Without a checkout beside it."""
    done = setuptools(checkout, "bdist_wheel")
    assert done.returncode == 0, done.stderr
    (wheel,) = (checkout / "dist").iterdir()
    installed = tmp_path_factory.mktemp("installed")
    shutil.unpack_archive(wheel, installed, "zip")
    run = [sys.executable, "-m", "scentd", "files"]
    where = {"cwd": installed, "env": {**os.environ, "PYTHONPATH": str(installed)}}
    done = subprocess.run([*run, "--json"], capture_output=True, text=True, timeout=60, check=True, **where)
    found = json.loads(done.stdout)["files"]
    assert found == {name: str(installed / "scentd" / "files" / name) for name in WHAT}
    assert all(contents(Path(path)) == contents(ROOT / "systemd" / name) for name, path in found.items())
    done = subprocess.run([*run, "nothing"], capture_output=True, text=True, timeout=60, check=False, **where)
    assert (done.returncode, done.stdout) == (1, "")
    assert "nothing: no such file; known: scentd.service" in done.stderr
