"""`scentd config migrate`: what is written, what stays beside it, what is refused. Notes of `check-config`."""

import json
import os

import pytest

from scentd import cli
from scentd.config_file import fleet_notes
from scentd.kinds import config_from
from scentd.wire import keys

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


def fleet(stampers: int, **network) -> list[str]:
    public = str(keys.identity(bytes(32)).public)
    hosts = [{"name": f"g{n}", "public_key": public[:-4] + f"{n:02}==", "duties": ["stamp"]} for n in range(stampers)]
    bus = {"url": ["nats://n:4222"], "name": "p", "key_file": "/b", "host": hosts}
    own = {"name": "acme", "key_file": "/k", "sign": True, "stamp": False, **network}
    return fleet_notes(config_from({"network": [own], "bus": bus}))


@pytest.mark.parametrize(
    ("stampers", "network", "words"),
    [
        (2, {"lag": "20s", "interval": "20s"}, []),
        (1, {"interval": "20s"}, []),
        (2, {}, ["set lag"]),
        (1, {"stamp": True}, ["set lag"]),
        (1, {"interval": "21s"}, ["set interval to 20s"]),
    ],
)
def test_notes_on_a_network_of_many_hosts(stampers, network, words):
    found = fleet(stampers, **network)
    assert len(found) == len(words)
    assert all(word in note for word, note in zip(words, found, strict=True))
