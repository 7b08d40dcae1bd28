"""The section of `kind = "postgres"`."""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path
from typing import ClassVar

from msgspec import field, structs

from scentd.config.resource import Resource
from scentd.config.schema import check_positive
from scentd.config.units import Seconds

PORT_MAX = 65535
PASSWORD = re.compile(r"(?i)\bpassword\s*=|://[^/@]*:[^/@]*@")


class PostgresResource(Resource, tag_field="kind", tag="postgres", kw_only=True):
    """The amount is the number of replicas in the pool."""

    unit: ClassVar[str] = "replicas"

    provide: Seconds = 10.0
    conninfo: str  # the primary, as libpq writes it; no password
    passfile: str = ""  # the password, as in .pgpass; mode 0600, of `user`
    directory: str  # where the replicas' files are
    user: str = "postgres"  # whom directory and servers belong to
    start: str = "pg_ctl"  # or a template unit of systemd: "scentd-replica@.service"
    bin_directory: str = "/usr/lib/postgresql/{version}/bin"  # {version}: the primary's; "": look in PATH
    hba_file: str = ""  # the replicas' pg_hba.conf; default: the one in the base backup
    settings: dict[str, str] = {}  # further ones of the replicas, as in postgresql.conf
    address: str = "127.0.0.1"  # where replicas listen
    ports: list[int] = field(default_factory=lambda: [6100, 6199])  # the first and the last one that they may have
    haproxy_socket: str  # HAProxy's `stats socket`, level admin
    pool: str  # the backend of haproxy.cfg
    server: str = "replica"  # its servers' names before the number: `server-template replica 1-8 127.0.0.1:1 disabled`
    max_lag: Seconds = 10.0  # a replica that is later does not count
    backup_timeout: Seconds = 3600.0  # for one base backup
    join_timeout: Seconds = 60.0  # from start to max_lag
    grace: Seconds = 30.0  # for sessions, before a replica goes
    connect_timeout: Seconds = 5.0  # for one answer of a server or HAProxy
    stop_timeout: Seconds = 30.0  # for a server to end

    def of(self, peer: str) -> PostgresResource:
        """The section with {peer} replaced."""
        texts = ("conninfo", "passfile", "directory", "hba_file", "pool", "server")
        return structs.replace(self, peer=peer, **{name: getattr(self, name).replace("{peer}", peer) for name in texts})

    def needs_peer_in(self) -> str:
        return "directory"

    def mistakes(self, path: str) -> list[str]:
        timeouts = ("max_lag", "backup_timeout", "join_timeout", "connect_timeout", "stop_timeout")
        problems = [*super().mistakes(path), *check_positive(self, path, *timeouts)]
        for key in ("conninfo", "pool"):
            if self.peer == "*" and "{peer}" not in getattr(self, key):
                problems.append(f"{path}.{key}: has no {{peer}}, so all peers would have one; write it, or {path}.peer")
        if self.grace < 0:
            problems.append(f"{path}.grace: is below 0")
        if PASSWORD.search(self.conninfo):
            problems.append(
                f"{path}.conninfo: holds a password; write it into a file, and name that in {path}.passfile"
            )
        for key in ("directory", "haproxy_socket", "passfile", "hba_file"):
            if getattr(self, key) and not Path(getattr(self, key)).is_absolute():
                problems.append(f"{path}.{key}: write it from the root on, such as /var/lib/scentd-replicas/{{peer}}")
        if self.start != "pg_ctl" and not re.fullmatch(r"[A-Za-z0-9_.:-]+@\.service", self.start):
            problems.append(f'{path}.start: write "pg_ctl" or a template unit such as "scentd-replica@.service"')
        for key in ("pool", "server"):
            if not re.fullmatch(r"[A-Za-z0-9_.:-]+", getattr(self, key).replace("{peer}", "p")):
                problems.append(f"{path}.{key}: is no name of haproxy.cfg")
        if not all(re.fullmatch(r"[a-z_][a-z0-9_.]*", key) for key in self.settings) or any(
            not value.isprintable() for value in self.settings.values()
        ):
            problems.append(f"{path}.settings: write names and values as in postgresql.conf, each in one line")
        problems += check_ports(self.ports, int(self.maximum), f"{path}.ports")
        try:
            ip_address(self.address)
        except ValueError:
            problems.append(f"{path}.address: {self.address!r} is no address; write one such as 127.0.0.1")
        return problems


def check_ports(ports: list[int], number: int, path: str) -> list[str]:
    if len(ports) != 2 or not 1 <= ports[0] <= ports[1] <= PORT_MAX:
        return [f"{path}: write the first and the last port, such as [6100, 6199]"]
    few = ports[1] - ports[0] + 1 < number
    return [f"{path}: are fewer than `maximum`; widen them"] if few else []
