"""Hosts whose routes to peers are lowered: a configuration, and what their sockets see."""

from __future__ import annotations

import json

from topology import Host

from scentd.collect.cpu import CpuSource
from scentd.config.sections import Config, Datapath, Network, Peer

MARK = hex(Datapath().mark_stamped)


TABLE = str(Datapath().route_table)


def config(*addresses: str) -> Config:
    """Of a host that signs profiles: only then are its peers' packets scented, and room is made for that."""
    network = Network(name="n", key_file="k", source=[CpuSource()])
    return Config(network=[network], peer=[Peer(name="p", public_key="", addresses=list(addresses))])


def near_of(host: Host) -> Host:
    return Host(host.namespace.removesuffix("host") + "near", "near")


def full_mtu_is(host: Host, address: str, lowered: int | None, full: int | None = None) -> None:
    """What sockets see, and what a packet with the stamped mark sees (None: the interface's own)."""
    assert mtu_of(host, address) == lowered
    assert mtu_of(host, address, "mark", MARK) == full


def mtu_of(host: Host, address: str, *more: str) -> int | None:
    (found,) = json.loads(host.out("ip", "-j", "route", "get", address, *more))
    metrics = found.get("metrics") or [{}]
    return metrics[0].get("mtu")
