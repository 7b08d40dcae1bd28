"""Key files are read with care: what is wrong is said, and never what is in them."""

from __future__ import annotations

import base64
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scentd.errors import KeyFileError
from scentd.state import key_files
from scentd.wire.keys import identity

SECRET = bytes(range(32))
LINE = base64.b64encode(SECRET).decode()


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_text(LINE + "\n")
    return path


def test_a_good_file(key):
    assert key_files.load(str(key)).public == identity(SECRET).public


def test_what_keygen_makes_is_read(key):
    key.write_text(key_files.generate())
    assert key_files.load(str(key)).public != identity(SECRET).public


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o610, 0o601, 0o777])
def test_others_may_not_touch_it(key, mode):
    key.chmod(mode)
    with pytest.raises(KeyFileError, match=f"mode {mode:04o}.*chmod 0600 {key}"):
        key_files.load(str(key))


def test_a_key_that_somebody_else_owns(key):
    """Its owner could change it."""
    if os.geteuid() != 0:
        pytest.skip("needs root: gives a file away")
    os.chown(key, 65534, -1)
    with pytest.raises(KeyFileError, match="it is user 65534's, who can change it: chown root"):
        key_files.load(str(key))


def test_missing(tmp_path):
    with pytest.raises(KeyFileError, match=r"No such file.*umask 077; scentd keygen"):
        key_files.load(str(tmp_path / "none"))


def test_not_a_file(tmp_path):
    """A directory, and a pipe that nobody writes to: neither blocks."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "directory").mkdir(0o700)
    for name in ("pipe", "directory"):
        with pytest.raises(KeyFileError, match="not a regular file"):
            key_files.load(str(tmp_path / name))


GARBAGE = (b"", b"\0" * 32, bytes(range(128, 192)), LINE[:-4].encode(), LINE.encode() * 2, b"A" * 9000)


@pytest.mark.parametrize("content", GARBAGE, ids=["empty", "zeros", "binary", "short", "twice", "long"])
def test_garbage(key, content):
    key.write_bytes(content)
    with pytest.raises(KeyFileError, match="scentd keygen") as error:
        key_files.load(str(key))
    assert str(key) in str(error.value)
    assert LINE[:8] not in str(error.value)


@given(st.text(max_size=100))
def test_no_text_breaks_the_parser_or_is_repeated(text):
    assert len(text) < 12 or text not in refusal(text)


def refusal(text: str) -> str:
    try:
        return "" if len(key_files.parse_secret(text)) == 32 else "no secret"
    except ValueError as error:
        return str(error)


def test_an_identity_does_not_show_its_secrets():
    shown = repr(identity(SECRET))
    assert SECRET.hex() not in shown
    assert "PrivateKey" not in shown


def test_credentials(key, monkeypatch):
    """credential:NAME is a file in the directory that systemd names."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(KeyFileError, match="LoadCredential="):
        key_files.load("credential:key")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(key.parent))
    assert key_files.load("credential:key").public == identity(SECRET).public
    for name in ("../key", "", ".", ".."):
        with pytest.raises(KeyFileError, match="no slashes"):
            key_files.load(f"credential:{name}")
