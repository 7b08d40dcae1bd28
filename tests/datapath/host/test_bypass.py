"""What passes the queue by, on hosts with bridges and flow tables."""

from __future__ import annotations

import pytest
from topology import Topology

from scentd.config.sections import Config, Network, Stamp
from scentd.datapath.host import bypass

pytestmark = pytest.mark.netns

ALONE = Config(network=[Network(name="n", key_file="/k", addresses=["10.1.0.9"])])


@pytest.fixture
def host():
    """br0 with two ports, br1 with one, which forwards nothing; 10.1.0.9 is the host's."""
    with Topology("bypass") as net:
        host = net.host("host")
        for bridge, ports in (("br0", 2), ("br1", 1)):
            host.ip(f"link add {bridge} type bridge")
            for number in range(ports):
                port = f"{bridge}p{number}"
                host.ip(
                    f"link add {port} mtu {1500 + number} type veth peer name {port}x",
                    f"link set {port} master {bridge}",
                )
        host.ip("addr add 10.1.0.9/24 dev br0")
        switches = [f"net.bridge.bridge-nf-call-{program}" for program in ("iptables", "ip6tables")]
        host.run("sysctl", "-qw", *(f"{name}=0" for name in switches), check=False)  # there with br_netfilter alone
        yield host


def test_bridges_that_iptables_does_not_see(host):
    assert host.call(lambda: bypass.unseen_bridges(bypass.links())) == {"br0": 1500}
    host.ip("link set br0 type bridge nf_call_iptables 1")
    assert host.call(lambda: bypass.unseen_bridges(bypass.links())) == {}


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (ALONE, False),
        (Config(network=ALONE.network, stamp=Stamp(forwarded=True)), True),
        (Config(network=[Network(name="n", key_file="/k", addresses=["10.1.0.0/24"])]), True),
    ],
)
def test_a_host_with_nothing_but_itself_is_told_nothing(host, config, told):
    found = host.call(bypass.read, config)
    assert [b.what.startswith("bridge br0: ") and "bridge-nf-call-iptables=1" in b.way_out for b in found] == [
        True
    ] * told


def test_flow_tables_are_named(host, monkeypatch):
    """As libnftables lists them; this kernel may have none."""
    listed = {
        "family": "inet",
        "name": "ft",
        "table": "f",
        "handle": 3,
        "hook": "ingress",
        "prio": 0,
        "dev": ["a", "b"],
    }
    monkeypatch.setattr(bypass.Nftables, "run", lambda *_: [{"metainfo": {}}, {"flowtable": listed}])
    assert host.call(bypass.flow_tables) == ["inet f ft"]
