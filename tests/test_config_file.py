"""`scentd config migrate` on files: what is written, what stays beside it, and what is refused."""

import json
import os

import pytest

from scentd import cli

OLD = """\
[[network]]
name = "acme"
[[network.collect]]  # ours
kind = "cpu"
"""
NEW = OLD.replace("collect", "source")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "scentd.toml"
    path.write_text(OLD)
    path.chmod(0o640)
    return path


def migrate(capsys, path, *argv: str) -> tuple[int, str, str]:
    status = cli.main(["config", "migrate", "--config", str(path), *argv])
    return status, *capsys.readouterr()


def test_the_old_file_stays_beside_the_new_one(capsys, file):
    status, said, _ = migrate(capsys, file)
    kept = file.with_name("scentd.toml.old")
    assert status == 0
    assert said == f"network[0].collect -> source\n{file}: rewritten; {kept} is as it was\n"
    assert (file.read_text(), kept.read_text()) == (NEW, OLD)
    assert file.stat().st_mode & 0o7777 == 0o640
    assert migrate(capsys, file) == (0, f"{file}: has no old names\n", "")


def test_a_dry_run_writes_nothing(capsys, file):
    status, said, _ = migrate(capsys, file, "--dry-run")
    assert (status, said.splitlines()[-1]) == (0, f"{file}: nothing is written (--dry-run)")
    assert os.listdir(file.parent) == [file.name]
    assert file.read_text() == OLD


def test_json(capsys, file):
    found = json.loads(migrate(capsys, file, "--json")[1])
    assert found["renamed"] == ["network[0].collect -> source"]
    assert found["kept"] == f"{file}.old"


def test_nothing_is_written_over(capsys, file):
    kept = file.with_name("scentd.toml.old")
    kept.write_text("mine")
    status, _, said = migrate(capsys, file)
    assert (status, said) == (1, f"scentd: {kept}: is there already; move it away. Nothing has changed\n")
    assert (file.read_text(), kept.read_text()) == (OLD, "mine")
    assert sorted(os.listdir(file.parent)) == [file.name, kept.name]


def test_what_cannot_be_rewritten_stays(capsys, file):
    text = 'policy = [{ name = "x", network = "y" }]\n'
    file.write_text(text)
    status, _, said = migrate(capsys, file)
    assert status == 2
    assert "policy[0].network: write peer now, and change this by hand" in said
    assert file.read_text() == text
    assert migrate(capsys, file.with_name("none"))[0] == 2
