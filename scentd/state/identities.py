"""The identities of a configuration's networks, and whether they fit its peers."""

from __future__ import annotations

from collections.abc import Mapping

from scentd.config.sections import Config, Peer
from scentd.errors import ConfigError, ScentdError
from scentd.state import key_files
from scentd.state.epochs import slot_id
from scentd.wire import keys


def load(config: Config) -> dict[str, keys.Identity]:
    """The identity of each network that has a key here, by name. Raises ConfigError with every wrong key at once."""
    identities: dict[str, keys.Identity] = {}
    problems = []
    for i, network in enumerate(config.network):
        if not network.key_file:
            continue
        try:
            identity = key_files.load(network.key_file)
        except ScentdError as error:
            problems.append(f"network[{i}].{error}")
            continue
        duplicates = [name for name, other in identities.items() if other.public == identity.public]
        if duplicates:
            problems.append(f"network[{i}].key_file: holds the key of network {duplicates[0]!r}; make one for each")
        identities[network.name] = identity
    for i, peer in enumerate(config.peer):
        problems += [f"peer[{i}].public_key: {why}" for why in key_problems(peer, list(identities.values()))]
    if problems:
        raise ConfigError(problems)
    return identities


def pair_slots(config: Config, identities: Mapping[str, keys.Identity]) -> dict[tuple[str, str], bytes]:
    """The slot of the highest epoch seen of each pair, by the names of network and peer.

    The slot's id depends on the two keys, so that a new key has a new slot. Without the network's key on this host it
    depends on the names.
    """
    slots = {}
    for network in config.network:
        own = identities.get(network.name)
        for peer in config.peer:
            peer_key = keys.parse_public(peer.public_key).raw
            ends = (own.public.raw, peer_key) if own is not None else (network.name.encode(), peer.name.encode())
            slots[network.name, peer.name] = slot_id("seen", *ends)
    return slots


def key_problems(peer: Peer, identities: list[keys.Identity]) -> list[str]:
    public = keys.parse_public(peer.public_key)
    if any(public == identity.public for identity in identities):
        return ["is a key of this host; name the other end's"]
    try:
        for identity in identities[:1]:
            keys.pair_secret(identity, public)
    except ValueError as error:
        return [f"{error}; take the output of `scentd pubkey`"]
    return []
