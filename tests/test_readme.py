"""What the README shows works as it stands there."""

import re
from pathlib import Path
from textwrap import dedent

import pytest

from scentd import cli
from scentd.kinds import load_config
from scentd.wire import keys

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = [dedent(b) for b in re.findall(r"(?:^    .*\n|^\n(?=    ))+", README, re.M)]
CONFIGURATIONS = [b for b in BLOCKS if b.lstrip().startswith("[[network]]")]


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
    table = README[README.index("## Operations") : README.index("## Threat model")]
    named = {
        name for line in re.findall(r"^\| (.*?) \|", table, re.M) for name in re.findall(r"`scentd (\w[\w-]*)", line)
    }
    assert {"status", "explain", "doctor"} <= named
    for name in named:
        with pytest.raises(SystemExit) as ended:
            cli.main([name, "--help"])
        assert ended.value.code == 0


def test_the_files_it_names_are_there():
    for name in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (ROOT / name).exists(), name
