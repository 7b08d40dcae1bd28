"""One word, one thing: what the names of the package's files and classes must be."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "scentd").rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}
KINDS = ("act", "collect", "core/allocate/actions", "show", "wire")  # where files of kinds lie
LINES_MAX = 400
TESTED = [path for path in FILES if path.name not in ("__init__.py", "__main__.py")]


def test_a_class_name_stands_for_one_class():
    names = Counter(n.name for tree in TREES.values() for n in ast.walk(tree) if isinstance(n, ast.ClassDef))
    assert len(names) > 100
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("folder", ["scentd", "scripts", "tests", "bpf"])
def test_no_module_of_ours_goes_by_another_name(folder):
    own = {"scentd", "benchmarks"} | {path.stem for path in (ROOT / "tests").rglob("*.py")}
    renamed = []
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            for name in node.names if isinstance(node, ast.Import | ast.ImportFrom) else ():
                if name.asname and (module or name.name).split(".")[0] in own:
                    renamed.append(f"{path.relative_to(ROOT)}: {name.name} as {name.asname}")
    assert renamed == []


def kind_classes() -> set[str]:
    """The sections of kinds of sources and actions."""
    from scentd.kinds import kinds

    return {section.__name__ for table in kinds().values() for section in table.values()}


def test_nobody_asks_for_a_kind_outside_of_its_file():
    asked = []
    for path, tree in TREES.items():
        defined = {n.name for n in ast.walk(tree) if isinstance(n, ast.ClassDef)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
                named = set(re.findall(r"\w+", ast.unparse(node.args[1])))
                asked += [f"{path.relative_to(ROOT)}:{node.lineno}" for _ in (named & kind_classes()) - defined]
    assert asked == []


@pytest.mark.parametrize("folder", ["scentd", "scripts", "tests", "bpf"])
def test_files_are_short(folder):
    long = [p for p in (ROOT / folder).rglob("*.py") if len(p.read_text().splitlines()) > LINES_MAX]
    assert long == []


def test_a_test_lies_at_the_path_of_its_module():
    """Or it is of the whole (tests/netns, tests/scripts, tests/systemd, tests/bpf), or of the front doors."""
    wholes = {"netns", "scripts", "systemd", "bpf"}
    of_folders = {"wire/test_vectors.py", "roles/test_apart.py"}
    modules = {path.relative_to(ROOT / "scentd").with_suffix("") for path in FILES}
    for path in (ROOT / "tests").rglob("test_*.py"):
        place = path.relative_to(ROOT / "tests")
        if place.parts[0] in wholes or len(place.parts) == 1 or str(place) in of_folders:
            continue
        stem = place.stem.removeprefix("test_")
        near = [m for m in modules if m.parent == place.parent and stem.startswith(m.name)]
        assert near or (ROOT / "scentd" / place.parent / stem).exists(), f"{place}: of which module?"
