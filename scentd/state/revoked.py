"""The public keys that are revoked on this host: `daemon.state_dir`/revoked, one to a line, with the time behind it.

Nothing with such a key is accepted, and nothing is sealed for it, whatever the configuration says: a stolen key is one
command away from being useless here, over reloads and restarts. What stands in the file that is no key is an error,
because a revocation must not get lost.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from scentd.errors import HostError
from scentd.state import durable
from scentd.wire import keys

FILE = "revoked"


def read(state_dir: str) -> dict[str, str]:
    """When each key was revoked, by the key as `scentd pubkey` prints it. Raises HostError."""
    path = Path(state_dir) / FILE
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise HostError(f"{path}: {error}; it has the revoked keys, so nothing starts without it") from error
    found = {}
    for number, line in enumerate(lines, 1):
        key, _, at = line.strip().partition(" ")
        try:
            found[str(keys.parse_public(key))] = at
        except ValueError as error:
            raise HostError(f"{path}: line {number}: {error}; write a public key, or remove the line") from error
    return found


def change(state_dir: str, key: keys.Public, undo: bool) -> None:
    """Revoke a key, or take that back; once more does no harm. Raises HostError."""
    revoked = read(state_dir)
    if undo:
        revoked.pop(str(key), None)
    else:
        revoked.setdefault(str(key), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    write(state_dir, revoked)


def write(state_dir: str, revoked: Mapping[str, str]) -> None:
    """Raises HostError; then nothing has changed."""
    path = Path(state_dir) / FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        durable.write(path, "".join(f"{key} {at}\n" for key, at in revoked.items()).encode())
    except OSError as error:
        raise HostError(f"daemon.state_dir: {path}: {error.strerror}; nothing has changed") from error
