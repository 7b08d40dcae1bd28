"""The command line without a daemon: what it prints, and its exit status. With one: netns/test_commands.py."""

from __future__ import annotations

import base64
import io
import json

import pytest

from scentd import __version__, cli, commands
from scentd.state import key_files
from scentd.wire import keys


@pytest.fixture
def files(tmp_path):
    """A correct configuration with its key file."""
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_text(key_files.generate())
    other = keys.identity(bytes(32)).public
    config = tmp_path / "scentd.toml"
    config.write_text(
        f'[daemon]\ncontrol_socket = "{tmp_path}/control.sock"\n'
        f'[[network]]\nname = "acme"\nkey_file = "{key}"\nsource = [{{kind = "cpu"}}]\n'
        f'[[peer]]\nname = "svc"\npublic_key = "{other}"\naddresses = ["10.0.0.0/24"]\n'
    )
    return tmp_path


def run(capsys, *argv: str) -> tuple[int, str, str]:
    status = cli.main(list(argv))
    return status, *capsys.readouterr()


def test_keygen_and_pubkey(capsys, monkeypatch):
    """A secret is 32 random bytes; its public key is 64 bytes and always the same."""
    (status, first, _), (_, second, _) = run(capsys, "keygen"), run(capsys, "keygen")
    assert status == 0
    assert first != second
    assert len(base64.b64decode(first)) == 32
    made = []
    for _ in range(2):
        monkeypatch.setattr("sys.stdin", iter_file(first))
        status, text, _ = run(capsys, "pubkey")
        assert status == 0
        made.append(text)
    assert made[0] == made[1]
    assert len(base64.b64decode(made[0])) == 64
    assert first.strip() not in made[0]


def iter_file(text: str) -> io.StringIO:
    return io.StringIO(text)


@pytest.mark.parametrize("text", ["", "not base64!", base64.b64encode(bytes(31)).decode(), "\0" * 2000])
def test_pubkey_of_garbage(capsys, monkeypatch, text):
    monkeypatch.setattr("sys.stdin", iter_file(text))
    status, out, err = run(capsys, "pubkey")
    assert (status, out) == (1, "")
    assert "scentd keygen" in err
    assert "!" not in err  # nothing of a secret is repeated


def test_check_config(capsys, files):
    config = str(files / "scentd.toml")
    status, out, _ = run(capsys, "check-config", "--config", config)
    assert status == 0
    assert "network acme: key id" in out
    assert "no beacons" in out  # a prefix has no single address
    assert out.endswith("ok\n")
    status, out, _ = run(capsys, "--json", "check-config", "--config", config)
    data = json.loads(out)
    assert status == 0
    assert data["ok"] is True
    assert set(data["public_keys"]) == {"acme"}


def test_check_config_says_every_mistake(capsys, files):
    config = files / "scentd.toml"
    config.write_text(config.read_text().replace("10.0.0.0/24", "10.0.0.0/33") + 'stmap = true\nabsent = "burn"\n')
    status, out, err = run(capsys, "check-config", "--config", str(config))
    assert (status, out) == (2, "")
    assert "3 mistake(s)" in err
    for part in ("peer[0].addresses[0]", "peer[0].stmap: unknown key; did you mean stamp?", "peer[0].absent"):
        assert part in err


def test_check_config_looks_at_the_key_files(capsys, files):
    (files / "key").chmod(0o640)
    status, _, err = run(capsys, "check-config", "--config", str(files / "scentd.toml"))
    assert status == 2
    assert "network[0].key_file" in err
    assert "chmod 0600" in err


@pytest.mark.parametrize("content", [None, "[[[", b"\xff\xfe", ""])
def test_files_that_are_no_configuration(capsys, tmp_path, content):
    path = tmp_path / "scentd.toml"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    status, _, err = run(capsys, "check-config", "--config", str(path))
    assert status == (0 if content == "" else 2)
    assert content == "" or str(path) in err


@pytest.mark.parametrize("command", ["status", "monitor", "metrics", "explain"])
def test_no_daemon(capsys, files, command):
    more = ["svc"] if command == "explain" else []
    status, out, err = run(capsys, command, *more, "--config", str(files / "scentd.toml"))
    assert (status, out) == (1, "")
    assert "is scentd running?" in err


def test_exporter_wants_host_and_port(capsys, files):
    for wrong in ("9736", ":9736", "localhost:", "localhost:http"):
        status, _, err = run(capsys, "exporter", "--listen", wrong, "--config", str(files / "scentd.toml"))
        assert status == 1
        assert "HOST:PORT" in err


def test_run_needs_root(capsys, files, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    status, _, err = run(capsys, "run", "--config", str(files / "scentd.toml"))
    assert status == 1
    assert "CAP_NET_ADMIN" in err


def test_version_and_wrong_usage(capsys):
    for argv, status, out in ((["--version"], 0, __version__), (["no-such-command"], 2, ""), (["rules"], 2, "")):
        with pytest.raises(SystemExit) as ended:
            cli.main(argv)
        assert ended.value.code == status
        assert out in capsys.readouterr().out


def command_names() -> list[str]:
    (found,) = [a for a in cli.parser()._actions if a.dest == "==SUPPRESS=="]
    return list(found.choices)


@pytest.mark.parametrize("command", [None, *command_names()])
def test_help(capsys, command):
    """Every command explains itself, its options included; --json and --config stand before or behind it."""
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"] if command else ["--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert "--config FILE" in text
    assert command or all(name in text for name in command_names())


def test_options_before_or_behind_the_command():
    parser = cli.parser()
    one = parser.parse_args(["--json", "--config", "x", "status"])
    other = parser.parse_args(["status", "--json", "--config", "x"])
    assert vars(one) == vars(other)
    assert parser.parse_args([]).run is commands.status


def test_check_config_of_a_key_that_the_service_alone_has(capsys, files):
    config = files / "scentd.toml"
    config.write_text(config.read_text().replace(f'"{files}/key"', '"credential:acme"'))
    status, said, _ = run(capsys, "check-config", "--config", str(config))
    assert status == 0
    assert said.splitlines()[-2:] == [
        "network acme: the key is a systemd credential, so no key was read here",
        f"{config}: ok",
    ]
