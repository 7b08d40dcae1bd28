"""Hosts in namespaces of their own.

sender ---- 10.1.0.0/24, fd00:1::/64 ---- receiver
host ---- 10.1.0.0/24, fd00:1::/64 (1500) ---- near
host ---- 10.2.0.0/24, fd00:2::/64 (1400) ---- other
"""

from __future__ import annotations

from pathlib import Path

import pytest
from topology import Host, Topology


@pytest.fixture
def net():
    with Topology("rules") as topology:
        sender, receiver = topology.host("sender"), topology.host("receiver")
        topology.link(sender, receiver, "10.1.0.0/24", "fd00:1::/64")
        yield topology


@pytest.fixture
def sender(net: Topology) -> Host:
    return net.hosts["sender"]


@pytest.fixture
def receiver(net: Topology) -> Host:
    return net.hosts["receiver"]


@pytest.fixture(params=["nft", "legacy"])
def backend(request, tmp_path, monkeypatch) -> str:
    """Both kinds of iptables, by what `iptables` is on the PATH."""
    for name in ("iptables", "ip6tables"):
        for tail in ("", "-restore"):
            target = Path(f"/usr/sbin/{name}-{request.param}{tail}")
            if not target.exists():
                pytest.skip(f"{target} is not installed")
            (tmp_path / f"{name}{tail}").symlink_to(target)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return request.param


@pytest.fixture
def host() -> Host:
    with Topology("routes") as net:
        host, near, other = net.host("host"), net.host("near"), net.host("other")
        net.link(host, near, "10.1.0.0/24", "fd00:1::/64")
        net.link(host, other, "10.2.0.0/24", "fd00:2::/64", mtu=1400)
        yield host
