"""Real NATS servers in namespaces by the shipped configuration: TLS, certificates of clients, permissions by duty.

with NatsCluster([host1, host2, host3], directory) as cluster:
    node.sections["bus"] |= cluster.settings(node)
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from certificates import Authority
from hosts import ROOT, Node, until
from nats.aio.client import Client
from topology import Host

PORT, CLUSTER_PORT = 4222, 6222
SHIPPED = ROOT / "systemd" / "nats-server.conf"
OPEN_SITE = """    {
      user: "CN=site-1"
      permissions: { publish: ["scentd.>"], subscribe: ["scentd.>"] }
    }
"""


class NatsCluster:
    def __init__(
        self,
        hosts: list[Host],
        directory: Path,
        users: dict[str, str],
        site: Host | None = None,
        site_keeps: bool = False,
    ) -> None:
        """A server on each host. `users`: names of hosts, and whose permissions in the shipped file each has. `site`:
        the server of another site, whose hosts talk to it alone; it is a leaf of the first. `site_keeps`: it has
        streams and buckets of its own, which is a mistake, and passes on all that hosts say.
        """
        self.hosts = hosts
        self.site = site
        self.site_keeps = site_keeps
        self.directory = directory
        self.authority = Authority(directory)
        self.users = users
        self.processes: dict[str, subprocess.Popen[Any]] = {}
        self.root = self._of("root")  # may do everything

    def __enter__(self) -> NatsCluster:
        everyone = [*self.hosts, *([self.site] if self.site else [])]
        for host in everyone:
            self.start(host)
        for host in everyone:
            until(lambda host=host: self._answers(host), f"NATS on {host.name}: {self._log(host).read_text()[-2000:]}")
        return self

    def __exit__(self, *_: object) -> None:
        for host in [*self.hosts, *([self.site] if self.site else [])]:
            self.stop(host)

    def start(self, host: Host) -> None:
        file = self.directory / f"{host.name}.conf"
        file.write_text(self._configuration(host))
        with open(self._log(host), "ab") as log:
            self.processes[host.name] = host.start("nats-server", "-c", str(file), stdout=log, stderr=log)

    def stop(self, host: Host) -> None:
        """kill -9."""
        self.processes[host.name].kill()
        self.processes[host.name].wait()

    def settings(self, node: Node, name: str = "", at_site: bool = False) -> dict[str, Any]:
        """What [bus] of a host says of the servers, with a certificate of its own."""
        made = {**self._of(name or node.name), "replicas": len(self.hosts), "name": name or node.name}
        if not at_site or self.site is None:
            return made
        domain = {} if self.site_keeps else {"domain": "scentd"}
        return made | {"url": [f"tls://{self.site.ipv4}:{PORT}"], **domain}

    def _of(self, name: str) -> dict[str, Any]:
        certificate, key = self.authority.certify(name, [])
        return {
            "url": [f"tls://{host.ipv4}:{PORT}" for host in self.hosts],
            "ca_file": str(self.authority.file),
            "certificate_file": str(certificate),
            "certificate_key_file": str(key),
        }

    def run(self, use: Callable[[Client], Awaitable[Any]], settings: dict[str, Any] | None = None) -> Any:
        """What `use` returns, of a client with a host's certificate; without, of one that may do everything."""
        own = settings or self.root
        context = ssl.create_default_context(cafile=own["ca_file"])
        context.load_cert_chain(own["certificate_file"], own["certificate_key_file"])

        async def connected() -> Any:
            client = Client()
            await client.connect(own["url"], tls=context)
            try:
                return await use(client)
            finally:
                await client.close()

        return self.hosts[0].call(asyncio.run, connected())

    def _configuration(self, host: Host) -> str:
        """The shipped file, with these hosts and names in place of its own."""
        certificate, key = self.authority.certify("site-1" if host is self.site else f"nats-{host.name}", [host.ipv4])
        routes = [f"nats-route://{other.ipv4}:{CLUSTER_PORT}" for other in self.hosts if other is not host]
        changes = {
            r'listen: "10\.9\.0\.1:': f'listen: "{host.ipv4}:',
            r'url: "tls://10\.9\.0\.1:': f'url: "tls://{self.hosts[0].ipv4}:',
            r'server_name: ".*"': f'server_name: "{host.name}"',
            r'store_dir: ".*"': f'store_dir: "{self.directory / host.name}"',
            r'cert_file: ".*"': f'cert_file: "{certificate}"',
            r'key_file: ".*"': f'key_file: "{key}"',
            r'ca_file: ".*"': f'ca_file: "{self.authority.file}"',
            r"routes: .*": f"routes: {json.dumps(routes)}",
        }
        text = SHIPPED.read_text()
        if host is self.site:
            text = text.replace('domain: "scentd"', 'domain: "site"')
            text = re.sub(rf"(?ms)^({'' if self.site_keeps else 'jetstream|'}cluster|leafnodes) \{{.*?^\}}$", "", text)
            text = re.sub(r"(?ms)^#leafnodes.*?^#\}$", lambda found: found[0].replace("\n#", "\n")[1:], text)
        for pattern, new in changes.items():
            text = re.sub(pattern, new, text)
        if len(self.hosts) == 1 and host is not self.site:  # a cluster of one never has a leader
            text = re.sub(r"(?ms)^cluster \{.*?^\}$", "", text)
        head, users, tail = re.split(r"(?ms)(?<=  users: \[\n)(.*)(?=^  \]$)", text)
        entries = [self._user(users, example, name) for name, example in self.users.items()]
        site = OPEN_SITE if self.site_keeps else self._user(users, "site-1", "site-1")
        return head + "".join([*entries, site, '    { user: "CN=root" }\n']) + tail

    @staticmethod
    def _user(users: str, example: str, name: str) -> str:
        """The entry of a host that has an example's duties."""
        [entry] = [entry for entry in re.findall(r"(?ms)^    \{.*?^    \}\n", users) if f'"CN={example}"' in entry]
        return re.sub(rf"\b{re.escape(example)}\b", name, entry)

    def _log(self, host: Host) -> Path:
        return self.directory / f"{host.name}.log"

    @staticmethod
    def _answers(host: Host) -> bool:
        with suppress(OSError), host.call(socket.create_connection, (host.ipv4, PORT), 1):
            return True
        return False
