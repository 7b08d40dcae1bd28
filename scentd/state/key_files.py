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
    path = _path(key_file)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        hint = f"make one with: (umask 077; scentd keygen > {path})"
        raise KeyFileError(f"key_file {path}: {error.strerror}; {hint}") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileError(f"key_file {path}: not a regular file")
        if status.st_mode & 0o077:
            mode = f"{status.st_mode & 0o777:04o}"
            raise KeyFileError(f"key_file {path}: others may read it (mode {mode}): chmod 0600 {path}")
        if status.st_uid not in (0, os.geteuid()):
            raise KeyFileError(f"key_file {path}: it is user {status.st_uid}'s, who can change it: chown root {path}")
        content = os.read(fd, _MAX)
    finally:
        os.close(fd)
    try:
        return keys.identity(parse_secret(content.decode("ascii", "replace")))
    except ValueError as error:
        raise KeyFileError(f"key_file {path}: {error}") from None


def _path(key_file: str) -> Path:
    if not key_file.startswith(CREDENTIAL):
        return Path(key_file)
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise KeyFileError(f"key_file {key_file}: no credentials were passed; add LoadCredential= to the unit")
    name = key_file.removeprefix(CREDENTIAL)
    if "/" in name or name in ("", ".", ".."):
        raise KeyFileError(f"key_file {key_file}: a credential's name has no slashes")
    return Path(directory) / name
