"""Each shipped policy file loads beside the resources that it names, and says at its head which these are."""

import re
from pathlib import Path

import pytest

from scentd.kinds import load_config
from scentd.wire import keys

FILES = sorted((Path(__file__).resolve().parents[2] / "systemd" / "policies").glob("*.toml"))
SERVER = 'server = "https://10.0.0.1:6443"\nobject = "db-{peer}"\nmaximum = 4'
LINK = 'interface = "eth0"\nlink = "1gbit"'
RESOURCES = {
    "replicas": f'kind = "kubernetes"\n{SERVER}',
    "edge": 'kind = "cache"\norigin = ["192.0.2.1:80"]\nedge = [{ name = "e", address = ["192.0.2.9:80"] }]',
    "closer": 'kind = "monitor"',
    "pipe": f'kind = "bandwidth"\n{LINK}\nmaximum = "1gbit"',
    "precedence": f'kind = "bandwidth_priority"\n{LINK}',
}


def loaded(file: Path, directory: Path, names):
    public = str(keys.identity(bytes([9]) * 32).public)
    (directory / "shipped.toml").write_text(file.read_text().replace("PUT THE PEER'S PUBLIC KEY HERE", public))
    resources = "".join(f'[[resource]]\nname = "{name}"\n{RESOURCES[name]}\n' for name in names)
    own = '[[network]]\nname = "own"\nkey_file = "own.key"\n'
    (directory / "scentd.toml").write_text(f'include = ["shipped.toml"]\n{own}{resources}')
    return load_config(directory / "scentd.toml")


def test_there_is_one_for_each_decision():
    assert {file.stem for file in FILES} == {
        "bandwidth", "cache", "database", "monitor", "normal", "quarantine", "reject"
    }  # fmt: skip


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_loads_with_the_resources_that_its_head_names(file, tmp_path):
    head, _, _ = file.read_text().partition("\n\n")
    named = [name for name in re.findall(r'"(\w+)"', head) if name in RESOURCES]
    config = loaded(file, tmp_path, named)
    assert {policy.do.asked_resource() for policy in config.policy} - {""} == set(named)


def test_reject_answers_what_does_not_verify(tmp_path):
    (file,) = (file for file in FILES if file.stem == "reject")
    (peer,) = loaded(file, tmp_path, []).peer
    assert (peer.rejected, peer.absent) == ("reject", "reject")
