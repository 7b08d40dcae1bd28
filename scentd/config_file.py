"""What the command line does with a configuration's file: `scentd check-config`, `scentd config migrate`."""

from __future__ import annotations

import json
import os
from pathlib import Path

from scentd import act
from scentd.config import migrate
from scentd.config.sections import Config
from scentd.core.profile.issue import outlives_takeover
from scentd.datapath.beacon import peers_without_endpoint
from scentd.errors import ConfigError, HostError
from scentd.model import SCHEMA
from scentd.state import durable, identities, revoked


def check(config: Config, path: str, as_json: bool) -> int:
    """Print the networks' public keys, and notes on what the daemon will not do; the exit status.

    Raises ConfigError for wrong keys.
    """
    elsewhere = identities.credentials_elsewhere(config)
    loaded = {} if elsewhere else identities.load(config)
    silent = (f"peer {p.name}: no beacons, as it has no single address" for p in peers_without_endpoint(config))
    notes = [*(f"{note}; set endpoint" for note in silent), *revoked_notes(config), *act.notes(config)]
    notes += fleet_notes(config)
    if elsewhere:
        notes.append(f"network {', '.join(elsewhere)}: the key is a systemd credential, so no key was read here")
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


def revoked_notes(config: Config) -> list[str]:
    """The peers' keys that are revoked on this host. Raises HostError."""
    found = revoked.read(config.daemon.state_dir)
    return [
        f"peer {peer.name}: its {setting} is revoked here: nothing is accepted by it"
        for peer in config.peer
        for setting, key in peer.named_keys()
        if key in found
    ]


def fleet_notes(config: Config) -> list[str]:
    """What networks that this host signs for a fleet miss."""
    signed = [network for network in config.network if network.signs and config.bus.used]
    notes = [
        f"network {n.name}: with an interval of {n.interval:.0f}s packets may leave without a scent while a standby "
        "takes over from a profiler; set interval to 20s or less"
        for n in signed
        if not outlives_takeover(int(n.interval))
    ]
    for n in signed:
        stampers = [h.name for h in config.bus.host if "stamp" in h.duties and h.serves(n.name)]
        if not n.lag and len(stampers) + n.stamps > 1:
            notes.append(
                f"network {n.name}: peers refuse what a stamper sends that is an interval or more behind the others "
                f"({', '.join(stampers)}); set lag, 20s for instance"
            )
    return notes


def rename(path: str, dry: bool, as_json: bool) -> int:
    """Give old names in the file today's; the file of before stays beside it. The exit status.

    Raises ConfigError for what cannot be rewritten, HostError for what cannot be written; then nothing has changed.
    """
    file = Path(path)
    try:
        before = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{error}; name the file with --config"]) from None
    made, renamed = migrate.migrate(before)
    kept = file.with_name(f"{file.name}.old") if renamed and not dry else None
    if kept is not None:
        replace(file, made, kept)
    if as_json:
        said = {"schema": SCHEMA, "renamed": renamed, "kept": None if kept is None else str(kept)}
        print(json.dumps(said))
    elif not renamed:
        print(f"{path}: has no old names")
    else:
        print("\n".join(renamed))
        print(f"{path}: nothing is written (--dry-run)" if kept is None else f"{path}: rewritten; {kept} is as it was")
    return 0


def replace(file: Path, text: str, kept: Path) -> None:
    """Put the text in the file's place, and the file under the name `kept`. A crash leaves the one or the other."""
    try:
        os.link(file, kept)
    except FileExistsError:
        raise HostError(f"{kept}: is there already; move it away. Nothing has changed") from None
    except OSError as error:
        raise HostError(f"{kept}: {error.strerror}; nothing has changed") from None
    try:
        durable.write(file, text.encode(), file.stat())
    except OSError as error:
        kept.unlink()
        raise HostError(f"{file}: {error.strerror}; nothing has changed") from None
