"""Back ends of bandwidth in a namespace, and streams to measure them with.

host 10.8.0.1, fd08::1 ------ bridge ------ left 10.8.0.2, fd08::2; right 10.8.0.3, fd08::3
"""

import json
import subprocess
from contextlib import closing
from ipaddress import ip_network
from pathlib import Path

from scentd.act.actuator import Tally
from scentd.act.resources.backend import BackendSetting
from scentd.act.resources.bandwidth import BandwidthBackend, BandwidthResource
from scentd.act.resources.bandwidth_priority import BandwidthPriority, BandwidthPriorityBackend

PEERS = {
    "left": (ip_network("10.8.0.2/32"), ip_network("fd08::2/128")),
    "right": (ip_network("10.8.0.3/32"), ip_network("fd08::3/128")),
}
MBIT = 1e6


def setting(peers):
    return BackendSetting(peers, Path("/nowhere"), Tally())


class InHost:
    """A back end whose methods are called in a host's namespace."""

    def __init__(self, host, backend):
        self.host, self.backend = host, backend

    def observe(self):
        return dict(self.host.call(self.backend.observe))

    def change(self, **amounts):
        for peer, amount in amounts.items():
            self.host.call(self.backend.change, peer, amount)

    def close(self):
        self.backend.close()


def bandwidth(host, what="ceiling", peers=PEERS, link=40 * MBIT, **more):
    section = BandwidthResource(
        name=what, interface=more.pop("interface", host.interfaces[0]), link=link, what=what, maximum=link, **more
    )
    return closing(InHost(host, BandwidthBackend(section, setting(peers))))


def priority(host, peers=PEERS, link=40 * MBIT, **more):
    section = BandwidthPriority(name="first", interface=host.interfaces[0], link=link, **more)
    return closing(InHost(host, BandwidthPriorityBackend(section, setting(peers))))


def streams(*pairs, seconds=3, family=4):
    """Send as fast as TCP can over each (from, to) at once; return the received bits per second of each."""
    servers = [to.start("iperf3", "-s", "-1", "-p", str(5300 + n), stdout=-3) for n, (_, to) in enumerate(pairs)]
    for n, (server, (_, to)) in enumerate(zip(servers, pairs, strict=True)):
        while f":{5300 + n} " not in to.out("ss", "-ltn"):
            assert server.poll() is None
    clients = []
    for n, (sender, to) in enumerate(pairs):
        address = to.ipv4 if family == 4 else to.ipv6
        argv = f"iperf3 -J -C cubic -O 1 -t {seconds} -p {5300 + n} -c {address}".split()
        clients.append(sender.start(*argv, stdout=subprocess.PIPE, text=True))
    said = [json.loads(client.communicate(timeout=60)[0]) for client in clients]
    for server in servers:
        server.wait(10)
    return [one["end"]["sum_received"]["bits_per_second"] for one in said]
