"""`scentd revoke`: through the daemon, which obeys at once, or into the file that it reads at its start."""

from __future__ import annotations

import json

from scentd.config.sections import Config
from scentd.control import client
from scentd.errors import UsageError
from scentd.model import SCHEMA
from scentd.state import revoked
from scentd.wire import keys


def show(config: Config, as_json: bool) -> int:
    """Print the revoked keys, and whose they are; the exit status. Raises HostError."""
    found = [
        {"key": key, "at": at, "peers": peers_of(config, key)}
        for key, at in revoked.read(config.daemon.state_dir).items()
    ]
    if as_json:
        print(json.dumps({"schema": SCHEMA, "revoked": found}))
    elif not found:
        print("no key is revoked here")
    else:
        print("\n".join(f"{e['key']} {e['at']} {', '.join(e['peers']) or 'no peer'}" for e in found))
    return 0


def revoke(config: Config, socket: str, text: str, undo: bool, as_json: bool) -> int:
    """Revoke a key, or take that back; the exit status. Raises UsageError for what is no key, HostError."""
    try:
        key = keys.parse_public(text)
    except ValueError as error:
        raise UsageError(f"PUBLIC_KEY: {error}") from None
    if client.answers(socket):
        problems = client.change(socket, {"command": "revoke", "key": str(key), "undo": undo})["problems"]
        when = "at once"
    else:
        revoked.change(config.daemon.state_dir, key, undo)
        problems, when = [], "from the next start on; no daemon runs here"
    peers = peers_of(config, str(key))
    if as_json:
        said = {"schema": SCHEMA, "key": str(key), "revoked": not undo, "peers": peers, "problems": problems}
        print(json.dumps(said))
    else:
        of = f"of {', '.join(peers)}" if peers else "of no peer in this configuration"
        print(f"key {key.key_id.hex()} {of} {'is accepted again' if undo else 'is revoked'}, {when}")
        for problem in problems:
            print(f"applied but for: {problem}")
    return 1 if problems else 0


def peers_of(config: Config, key: str) -> list[str]:
    """The names of the peers that have this key."""
    return [peer.name for peer in config.peer if key in peer.public_keys]
