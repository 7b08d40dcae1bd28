"""Real NATS servers in namespaces, a cluster with TLS for which clients need certificates.

with NatsCluster([host1, host2, host3], directory) as cluster:
    node.sections["bus"] |= cluster.settings(node)
"""

from __future__ import annotations

import json
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from certificates import Authority
from hosts import Node, until
from topology import Host

PORT, CLUSTER_PORT = 4222, 6222


class NatsCluster:
    def __init__(self, hosts: list[Host], directory: Path, users: list[dict[str, Any]] | None = None) -> None:
        """A server on each host. `users` have permissions by their certificates' names; None: all may everything."""
        self.hosts = hosts
        self.directory = directory
        self.authority = Authority(directory)
        self.users = users
        self.processes: dict[str, subprocess.Popen[Any]] = {}

    def __enter__(self) -> NatsCluster:
        for host in self.hosts:
            self.start(host)
        for host in self.hosts:
            until(lambda host=host: self._answers(host), f"NATS on {host.name}: {self._log(host).read_text()[-2000:]}")
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            self.stop(host)

    def start(self, host: Host) -> None:
        file = self.directory / f"{host.name}.conf"
        file.write_text(json.dumps(self._configuration(host)))
        with open(self._log(host), "ab") as log:
            self.processes[host.name] = host.start("nats-server", "-c", str(file), stdout=log, stderr=log)

    def stop(self, host: Host) -> None:
        """kill -9."""
        self.processes[host.name].kill()
        self.processes[host.name].wait()

    def settings(self, node: Node, name: str = "") -> dict[str, Any]:
        """What [bus] of a host says of the servers, with a certificate of its own."""
        certificate, key = self.authority.certify(name or node.name, [])
        return {
            "url": [f"tls://{host.ipv4}:{PORT}" for host in self.hosts],
            "ca_file": str(self.authority.file),
            "certificate_file": str(certificate),
            "certificate_key_file": str(key),
            "replicas": len(self.hosts),
            "name": name or node.name,
        }

    def _configuration(self, host: Host) -> dict[str, Any]:
        certificate, key = self.authority.certify(f"nats-{host.name}", [host.ipv4])
        tls = {"cert_file": str(certificate), "key_file": str(key), "ca_file": str(self.authority.file)}
        made: dict[str, Any] = {
            "listen": f"{host.ipv4}:{PORT}",
            "server_name": host.name,
            "jetstream": {"store_dir": str(self.directory / host.name), "max_memory_store": 1 << 28},
            "tls": {**tls, "verify": True} if self.users is None else {**tls, "verify_and_map": True},
        }
        if self.users is not None:
            made["authorization"] = {"users": self.users}
        if len(self.hosts) > 1:
            routes = [f"nats-route://{other.ipv4}:{CLUSTER_PORT}" for other in self.hosts if other is not host]
            listen = f"{host.ipv4}:{CLUSTER_PORT}"
            made["cluster"] = {"name": "fleet", "listen": listen, "routes": routes, "tls": {**tls, "verify": True}}
        return made

    def _log(self, host: Host) -> Path:
        return self.directory / f"{host.name}.log"

    @staticmethod
    def _answers(host: Host) -> bool:
        with suppress(OSError), host.call(socket.create_connection, (host.ipv4, PORT), 1):
            return True
        return False
