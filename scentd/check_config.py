"""`scentd check-config`: reads a configuration and its keys as the daemon does, and says what it will not do."""

from __future__ import annotations

import json

from scentd import act
from scentd.config.sections import Config
from scentd.datapath.beacon import peers_without_endpoint
from scentd.model import SCHEMA
from scentd.state import identities


def show(config: Config, path: str, as_json: bool) -> int:
    """Print the networks' public keys and the notes; the exit status. Raises ConfigError for wrong keys."""
    loaded = identities.load(config)
    silent = (f"peer {p.name}: no beacons, as it has no single address" for p in peers_without_endpoint(config))
    notes = [*(f"{note}; set endpoint" for note in silent), *act.notes(config)]
    if as_json:
        now = {name: str(own[0].public) for name, own in loaded.items()}
        following = {name: str(own[1].public) for name, own in loaded.items() if own[1:]}
        said = {"schema": SCHEMA, "ok": True, "public_keys": now, "next_public_keys": following, "notes": notes}
        print(json.dumps(said))
        return 0
    for name, own in loaded.items():
        for which, identity in zip(("", "next "), own, strict=False):
            public = identity.public
            print(f"network {name}: {which}key id {public.key_id.hex()}, {which}public key {public}")
    print("\n".join([*notes, f"{path}: ok"]))
    return 0
