"""What other policies would have decided, by the command, on views that were really recorded."""

import json
import sqlite3
from contextlib import closing

import pytest

from scentd import cli
from scentd.model import Profile, View
from scentd.state.history import History
from scentd.wire import keys

PUBLIC = str(keys.identity(bytes([7]) * 32).public)


@pytest.fixture
def files(tmp_path):
    """Recorded: a cpu that rises from 0.5 to 0.95 in ten profiles; two configurations."""

    def write(name, threshold):
        path = tmp_path / name
        path.write_text(
            f"""
daemon = {{ state_dir = "{tmp_path}" }}
network = [{{ name = "own", key_file = "own.key" }}]
peer = [{{ name = "a", public_key = "{PUBLIC}", addresses = ["10.1.0.0/16"] }}]
resource = [{{ name = "pipe", kind = "bandwidth", interface = "lo", link = "1gbit", maximum = "100mbit" }}]
[[policy]]
name = "narrow"
when = "cpu > {threshold}"
do = {{ kind = "amount", resource = "pipe", to = "50mbit" }}
[[policy]]
name = "run"
when = "cpu > 0.9"
do = {{ kind = "command", argv = ["/bin/true"] }}
"""
        )
        return str(path)

    kept = History(str(tmp_path / "history.db"), 64e6, 1e12)
    for i in range(10):
        profile = Profile("a", 100 + 5 * i, 5, None, {"cpu": 0.5 + 0.05 * i}, bytes(32))
        at = float(2_000_000_000 + 5 * i)
        kept.record([View("a", (profile,), at), View("gone", (profile,), at)], at)
    kept.close()
    return write("today", 0.8), write("tomorrow", 0.6)


def test_the_differences_of_a_replay(files, capsys):
    today, tomorrow = files
    assert cli.main(["policy", "test", tomorrow, "--config", today, "--replay"]) == 1
    first, new, gone = capsys.readouterr().out.splitlines()
    assert first == "20 views of 2 peers: -1 +1 decisions"
    assert gone.startswith(
        "- 2033-05-18 03:33:55 a: narrow amount pipe 100mbit -> 50mbit (epoch 135: cpu > 0.8 [cpu=0.85"
    )
    assert new.startswith(
        "+ 2033-05-18 03:33:35 a: narrow amount pipe 100mbit -> 50mbit (epoch 115: cpu > 0.6 [cpu=0.65"
    )


def test_equal_policies_differ_in_nothing(files, capsys):
    today, _ = files
    assert cli.main(["policy", "test", today, "--config", today, "--replay", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"views": 20, "gone": [], "new": []}


def test_without_a_replay_the_newest_views_count(files, capsys):
    today, tomorrow = files
    assert cli.main(["policy", "test", tomorrow, "--config", today]) == 0
    assert capsys.readouterr().out == "2 views of 2 peers: -0 +0 decisions\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--since", "soon"], "--since soon: 'soon' is not a quantity"),
        (["--config", "/nonexistent"], "/nonexistent: No such file or directory"),
    ],
)
def test_what_cannot_be_told(files, arguments, says, capsys):
    today, tomorrow = files
    assert cli.main(["policy", "test", tomorrow, "--config", today, *arguments]) == 2
    assert says in capsys.readouterr().err


def test_without_a_history_the_way_out_is_told(files, tmp_path, capsys):
    today, tomorrow = files
    (tmp_path / "history.db").unlink()
    assert cli.main(["policy", "test", tomorrow, "--config", today]) == 2
    assert "name the running configuration with --config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("UPDATE view SET levels = x'c1'", "MessagePack data is malformed"),
        ("PRAGMA user_version = 99", "is of version 99, and this scentd knows 1"),
    ],
)
def test_a_history_that_cannot_be_understood_is_an_error(files, tmp_path, change, says, capsys):
    today, tomorrow = files
    with closing(sqlite3.connect(tmp_path / "history.db")) as history, history:
        history.execute(change)
    assert cli.main(["policy", "test", tomorrow, "--config", today]) == 2
    assert says in capsys.readouterr().err
