"""Key files: reading them with care, and making new ones.

A key file holds one line, the base64 of 32 secret bytes, and is readable by its
owner alone. "credential:NAME" names a systemd credential (LoadCredential=) instead.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
import stat
from pathlib import Path

from scentd.errors import KeyFileError
from scentd.wire import keys

CREDENTIAL = "credential:"  # and a name: no path, but a systemd credential
_MAX = 256  # bytes that are read of a key file


def generate() -> str:
    """A new secret as one base64 line."""
    return base64.b64encode(secrets.token_bytes(keys.SECRET_LEN)).decode()


def parse_secret(text: str) -> bytes:
    """32 bytes from their base64 line. Raises ValueError without repeating any of the text."""
    try:
        secret = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not the base64 of a secret; make one with `scentd keygen`") from None
    if len(secret) != keys.SECRET_LEN:
        raise ValueError(f"{len(secret)} bytes, not {keys.SECRET_LEN}; make a secret with `scentd keygen`")
    return secret


def load(key_file: str) -> keys.Identity:
    """The identity in a key file or credential. Raises KeyFileError."""
    content = read("key_file", key_file, _MAX, "make one with: (umask 077; scentd keygen > {path})")
    try:
        return keys.identity(parse_secret(content.decode("ascii", "replace")))
    except ValueError as error:
        raise KeyFileError(f"key_file {_path('key_file', key_file)}: {error}") from None


def read(setting: str, name: str, size: int, missing: str) -> bytes:
    """At most `size` bytes of a file or credential that only its owner may read. Raises KeyFileError.

    `setting` names it in errors; `missing` is the way out if it cannot be opened, with the place {path}.
    """
    path = _path(setting, name)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise KeyFileError(f"{setting} {path}: {error.strerror}; {missing.format(path=path)}") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileError(f"{setting} {path}: not a regular file")
        if status.st_mode & 0o077:
            mode = f"{status.st_mode & 0o777:04o}"
            raise KeyFileError(f"{setting} {path}: others may read it (mode {mode}): chmod 0600 {path}")
        if status.st_uid not in (0, os.geteuid()):
            raise KeyFileError(f"{setting} {path}: it is user {status.st_uid}'s, who can change it: chown root {path}")
        return os.read(fd, size)
    finally:
        os.close(fd)


def _path(setting: str, name: str) -> Path:
    if not name.startswith(CREDENTIAL):
        return Path(name)
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise KeyFileError(f"{setting} {name}: no credentials were passed; add LoadCredential= to the unit")
    credential = name.removeprefix(CREDENTIAL)
    if "/" in credential or credential in ("", ".", ".."):
        raise KeyFileError(f"{setting} {name}: a credential's name has no slashes")
    return Path(directory) / credential
