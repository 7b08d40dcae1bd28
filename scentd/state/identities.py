"""The identities of a configuration's networks, and whether they fit its peers."""

from __future__ import annotations

import os
from collections.abc import Sequence

from scentd.config.sections import Config, Network, Peer
from scentd.errors import ConfigError, ScentdError
from scentd.state import key_files
from scentd.state.key_files import CREDENTIAL
from scentd.wire import keys


def load(config: Config) -> dict[str, tuple[keys.Identity, ...]]:
    """The identities of each network that has a key here, by name: the one in use, then the next.

    Raises ConfigError with every wrong key at once.
    """
    found: dict[str, tuple[keys.Identity, ...]] = {}
    owners: dict[str, str] = {}  # of each public key: the setting that names it
    problems = []
    for i, network in enumerate(config.network):
        own = []
        for name, key_file in key_files_of(network):
            try:
                identity = key_files.load(key_file)
            except ScentdError as error:
                problems.append(f"network[{i}].{str(error).replace('key_file', name, 1)}")
                continue
            path = f"network[{i}].{name}"
            owner = owners.setdefault(str(identity.public), path)
            if owner != path:
                problems.append(f"{path}: holds the key of {owner}; make one for each")
            own.append(identity)
        if own:
            found[network.name] = tuple(own)
    everybody = [identity for own in found.values() for identity in own]
    for i, peer in enumerate(config.peer):
        problems += [f"peer[{i}].{problem}" for problem in key_problems(peer, everybody)]
    if problems:
        raise ConfigError(problems)
    return found


def load_bus(config: Config) -> keys.Identity | None:
    """This host's own identity on the bus between hosts; None if it is not on one. Raises ConfigError."""
    if not config.bus.used:
        return None
    try:
        own = key_files.load(config.bus.key_file)
        for i, host in enumerate(config.bus.host):
            public = keys.parse_public(host.public_key)
            if public == own.public:
                raise ValueError(f"host[{i}].public_key: is the key of this host; name the other's")
            keys.pair_secret(own, public)
    except (ScentdError, ValueError) as error:
        raise ConfigError([f"bus.{error}"]) from None
    return own


def credentials_elsewhere(config: Config) -> list[str]:
    """The networks whose keys are systemd credentials that this process was not given: the service alone has them."""
    if os.environ.get("CREDENTIALS_DIRECTORY"):
        return []
    return [n.name for n in config.network if any(file.startswith(CREDENTIAL) for _, file in key_files_of(n))]


def key_files_of(network: Network) -> list[tuple[str, str]]:
    """(setting, file) of the network's keys."""
    settings = ("key_file", network.key_file), ("next_key_file", network.next_key_file)
    return [(name, key_file) for name, key_file in settings if key_file]


def key_problems(peer: Peer, identities: Sequence[keys.Identity]) -> list[str]:
    problems = []
    for name, text in peer.named_keys():
        public = keys.parse_public(text)
        if any(public == identity.public for identity in identities):
            problems.append(f"{name}: is a key of this host; name the other end's")
        try:
            for identity in identities[:1]:
                keys.pair_secret(identity, public)
        except ValueError as error:
            problems.append(f"{name}: {error}; take the output of `scentd pubkey`")
    return problems
