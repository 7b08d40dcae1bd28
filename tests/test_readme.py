"""What the README files show works as it stands there, and the map names what is there."""

import re
import subprocess
from pathlib import Path
from textwrap import dedent

import pytest

from scentd import cli, model
from scentd.config import expression
from scentd.kinds import load_config
from scentd.system import debian
from scentd.wire import keys

ROOT = Path(__file__).resolve().parent.parent
WORDS_MAX = 1300
README = (ROOT / "README.md").read_text()
OPERATIONS = (ROOT / "systemd" / "README.md").read_text()
MAP = (ROOT / "scentd" / "README.md").read_text()
READMES = [
    ROOT / folder / "README.md" for folder in (".", "bpf", "scentd", "scentd/wire", "scripts/benchmarks", "systemd")
]
BLOCKS = [dedent(b) for b in re.findall(r"(?:^    .*\n|^\n(?=    ))+", README, re.M)]
CONFIGURATIONS = [b for b in BLOCKS if b.lstrip().startswith("[[network]]")]


def section(text: str, heading: str) -> str:
    """From a heading of the second level to the next one."""
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def first_cells(text: str) -> list[str]:
    """Of the rows of all tables, without headings."""
    return [cell for cell in re.findall(r"^\| (.*?) \|", text, re.M) if cell not in ("file", "type", "command")]


def anchors(text: str) -> set[str]:
    """What a link to a heading of this file may say behind the #."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_the_packages_to_run_it_are_named():
    """All that messages name when they are missing, but for what every Debian has or those depend on."""
    for package in set(debian.PACKAGES.values()) - {"util-linux", "systemd", "libmnl0", "libnfnetlink0"}:
        assert package in README, package


def test_the_readme_is_for_a_newcomer():
    assert len(README.split()) <= WORDS_MAX


def test_both_hosts_are_shown():
    assert len(CONFIGURATIONS) == 2


@pytest.mark.parametrize("text", CONFIGURATIONS)
def test_the_configurations_load(text, tmp_path):
    path = tmp_path / "scentd.toml"
    path.write_text(re.sub(r'"…[^"]*…"', f'"{keys.identity(bytes(32)).public}"', text))
    loaded = load_config(path)
    assert loaded.network
    assert loaded.peer


def test_every_command_in_the_table_exists():
    cells = first_cells(section(OPERATIONS, "Commands"))
    named = {name for cell in cells for name in re.findall(r"`scentd (\w[\w-]*)", cell)}
    assert {"status", "explain", "doctor"} <= named
    for name in named:
        with pytest.raises(SystemExit) as ended:
            cli.main([name, "--help"])
        assert ended.value.code == 0


def test_the_table_has_every_variable_of_policies():
    """And no other; metrics are one row, but for the threat."""
    rows = [line for line in section(OPERATIONS, "Policies").splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == {*expression.NUMBERS, *expression.BOUNDS, "threat", "peer"}
    known = [*expression.known_variables(set()), *expression.BOUNDS]
    assert expression.check_when(" && ".join(f"{n} > 0.0" for n in named - {"peer"}), known) == []


def test_the_table_has_every_command():
    named = set(re.findall(r"`scentd (\w[\w-]*)", section(OPERATIONS, "Commands")))
    choices = next(a.choices for a in cli.parser()._actions if isinstance(a.choices, dict))
    assert set(choices) <= named


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_links_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        name, _, anchor = link.partition("#")
        if not name.startswith("http"):
            target = path.parent / name if name else path
            assert target.exists(), link
            assert not anchor or anchor in anchors(target.read_text()), link


def test_every_readme_is_looked_at():
    listed = subprocess.run(["git", "ls-files", "*README.md"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        assert {ROOT / name for name in listed.stdout.split()} <= set(READMES)


# -- the map -------------------------------------------------------------


def test_the_map_names_every_file_once():
    named = [cell.strip("`") for cell in first_cells(section(MAP, "Files"))]
    there = [path for path in (ROOT / "scentd").rglob("*") if path.is_file() and path.stat().st_size]
    source = [path for path in there if path.parent.name != "__pycache__" and not path.name.endswith(".bpf.o")]
    assert sorted(named) == sorted(str(path.relative_to(ROOT / "scentd")) for path in source)


def test_the_types_on_the_arrows_are_the_models():
    cells = first_cells(section(MAP, "The flow"))
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert {"Samples", "IssuedEpoch", "Views", "Desired"} <= named
    for name in named:
        assert isinstance(getattr(model, name), type), name


def test_every_type_of_the_model_is_on_an_arrow():
    named = set(re.findall(r"`(\w+)`", section(MAP, "The flow")))
    own = {name for name, kind in vars(model).items() if isinstance(kind, type) and kind.__module__ == model.__name__}
    assert own <= named


def test_the_places_in_the_map_are_there():
    """Each path in backticks, but for files that a reader is to make."""
    wrong = []
    for line in MAP.splitlines():
        for name in re.findall(r"`([\w./-]+(?:/|\.py|\.h|\.c|\.md))`(?! \(new\))", line):
            places = (ROOT / "scentd" / name, ROOT / name)
            if "/" in name and not any(place.exists() for place in places):
                wrong.append(line)
    assert wrong == []


def test_the_names_in_the_glossary_are_there():
    """A name with a capital letter is that of a class."""
    source = "\n".join(path.read_text() for path in (ROOT / "scentd").rglob("*.py"))
    for line in section(MAP, "Glossary").splitlines()[4:]:
        where = line.rpartition(" | ")[2] if line.endswith("|") else ""
        for name in re.findall(r"`([A-Z]\w+)(?:\.\w+)?`", where):
            assert re.search(rf"^class {name}\b", source, re.M), name


def test_the_glossary_has_each_term_once_and_in_order():
    terms = [cell for cell in first_cells(section(MAP, "Glossary")) if cell != "term"]
    assert terms == sorted(set(terms), key=str.lower)
