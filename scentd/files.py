"""`scentd files`: where the files are that an operator copies or reads: units, example, alert rules, operations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from scentd.errors import HostError
from scentd.model import SCHEMA

HERE = Path(__file__).resolve().parent
PLACES = (HERE / "files", HERE.parent / "systemd")  # of an installed package (bpf/build.py copies them), of a checkout
WHAT = {
    "scentd.service": "the daemon's unit",
    "scentd-guard.service": "the guard's unit",
    "scentd-exporter.service": "the unit of the metrics over HTTP",
    "scentd.example.toml": "every setting of the configuration, with unit and default",
    "alerts.yml": "alert rules for Prometheus",
    "fail2ban-scentd.conf": "an action of fail2ban that reports each ban",
    "nats-server.conf": "a NATS server for a fleet: TLS, and what each host may say and hear",
    "suricata-disable.conf": "rules of Suricata's decoder that alert on every scent",
    "resources.md": "what policies may give: amounts, and each kind of resource",
    "policies": "policies for each decision, to be included",
    "README.md": "operations: commands, procedures, alerts, what a policy may ask",
}


def directory() -> Path:
    """Raises HostError."""
    found = next((place for place in PLACES if (place / "scentd.service").is_file()), None)
    if found is None:
        raise HostError(f"no files at {' or '.join(map(str, PLACES))}: the package is not whole; install it again")
    return found


def show(names: Sequence[str], as_json: bool) -> int:
    """Print each file's path and what it is; of named ones the path alone, for a shell. Raises HostError."""
    place = directory()
    unknown = [name for name in names if name not in WHAT]
    if unknown:
        raise HostError(f"{unknown[0]}: no such file; known: {', '.join(WHAT)}")
    if as_json:
        found = {name: str(place / name) for name in names or WHAT}
        print(json.dumps({"schema": SCHEMA, "files": found}))
    elif names:
        print("\n".join(str(place / name) for name in names))
    else:
        width = max(len(str(place / name)) for name in WHAT)
        print("\n".join(f"{place / name!s:{width}}  {what}" for name, what in WHAT.items()))
    return 0
