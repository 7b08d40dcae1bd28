"""Two tenants with equal addresses, each in a VRF of the gateway that is the network's `interface`.

red  ---- (VRF vred)  gateway ---- 10.1.0.0/24 ---- b     each tenant has 10.0.0.1/24, and the gateway 10.0.0.2 at both
blue ---- (VRF vblue)

Not every kernel has VRFs: scripts/try-kernel runs this file on Debian's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from compiled import bpffs
from hosts import Node, answered, peer_of, settled, start, until
from kernel_features import needs_link
from test_tenants import Tenant, accepted, peer, profile, tenant
from topology import Topology

pytestmark = [pytest.mark.netns, needs_link("vrf", "table 100")]

# Connections of equal addresses are told apart by zones; answers go to the VRF in which the connection began.
FIREWALL = """
table ip tenants {{
    chain zones {{
        type filter hook prerouting priority -300
        iifname {{ {red}, vred }} ct original zone set 1
        iifname {{ {blue}, vblue }} ct original zone set 2
    }}
    chain marks {{
        type filter hook prerouting priority -150
        iifname {{ {red}, vred }} ct mark set 0x100
        iifname {{ {blue}, vblue }} ct mark set 0x200
        ct mark 0x100 meta mark set meta mark | 0x100
        ct mark 0x200 meta mark set meta mark | 0x200
    }}
    chain behind {{
        type nat hook postrouting priority 100
        oifname {out} masquerade
    }}
}}
"""


@pytest.fixture(scope="module", params=[False, True], ids=["queue", "offload"])
def hosts(request, tmp_path_factory) -> Iterator[tuple[Node, Tenant, Tenant]]:
    directory = tmp_path_factory.mktemp("tv")
    with ExitStack() as stack:
        net, bpf = stack.enter_context(Topology("tv")), stack.enter_context(bpffs(directory / "bpf"))
        gateway, b = Node(net.host("g", forward=True), directory), Node(net.host("b"), directory)
        net.link(gateway.host, b.host, ipv4="10.1.0.0/24")
        out = gateway.host.interfaces[0]
        red, blue = (tenant(net, gateway, name, directory, interface=[f"v{name}"]) for name in ("red", "blue"))
        gateway.host.sysctl(net_ipv4_conf_all_rp__filter=0)
        for number, each in enumerate((red, blue), start=101):
            gateway.host.ip(
                f"link add v{each.name} type vrf table {number}",
                f"link set v{each.name} up",
                f"link set {each.interface} master v{each.name}",
                f"route add default via {b.host.ipv4} dev {out} table {number}",
                f"rule add fwmark {number - 100:#x}00/0x300 iif {out} table {number} priority {number}",
            )
        names = {"red": red.interface, "blue": blue.interface, "out": out}
        gateway.host.run("nft", "-f", "-", input=FIREWALL.format(**names))
        if request.param:
            gateway.pin_dir, b.pin_dir = bpf / "g", bpf / "b"
        gateway.peers = [peer_of(b, bind="sender")]
        gateway.sections |= {"stamp": {"forwarded": True}, "network": [red.network, blue.network]}
        b.peers = [{**peer(red, "sender"), "absent": "drop"}, peer(blue, "sender")]
        with gateway, b:
            start(gateway, b)
            yield b, red, blue


def test_each_tenant_has_its_own_profile(hosts):
    b, red, blue = hosts
    for each in (red, blue):
        until(lambda each=each: profile(b, each), f"b knows {each.name}")
    with red.node.socket(4) as one, blue.node.socket(4) as other, b.socket(4) as receiver:
        for sender in (one, other):
            until(lambda sender=sender: answered(sender, receiver), "the gateway forwards")
        absent = settled(b, "absent")
        before = accepted(b, red), accepted(b, blue)
        for n in range(20):
            for sender in (one, other):
                assert answered(sender, receiver, b"%d" % n)
    until(lambda: accepted(b, red) >= before[0] + 20, "red is counted as itself")
    until(lambda: accepted(b, blue) >= before[1] + 20, "so is blue")
    assert settled(b, "absent") == absent
    assert sum(b.status()["rejected"].values()) == 0
