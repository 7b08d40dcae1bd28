"""What doctor says of a host's NAT and IPsec."""

from __future__ import annotations

import pytest
from queues import config
from topology import Topology

from scentd.config.sections import Config, Network, Peer
from scentd.datapath.host import path_table, selection
from scentd.datapath.host.rewritten import Rewrites
from scentd.doctor.rewriting import check_ipsec, check_nat

pytestmark = pytest.mark.netns


@pytest.fixture
def host():
    with Topology("drw") as net:
        yield net.host("host")


def test_no_nat_and_no_scent_that_it_could_spoil(host):
    assert host.call(check_nat, config()).found == "none on this host"
    silent = Config(network=[Network(name="n", key_file="k")], peer=[Peer(name="p", public_key="", addresses=[])])
    assert host.call(check_nat, silent).ok == "yes"


def test_nat_and_what_it_has_spoilt(host):
    host.run("nft", "add table ip t; add chain ip t c { type nat hook postrouting priority 100; }")
    host.call(path_table.apply, selection.select(config(), None, Rewrites(nat=True)))
    check = host.call(check_nat, config())
    assert (check.ok, check.way_out) == ("yes", "")
    host.run("nft", "add element inet scentd_path translated4 { 10.1.0.2 counter packets 7 bytes 700 }")
    check = host.call(check_nat, config())
    assert check.ok == "warning"
    assert "7 to 10.1.0.2" in check.found
    assert "peer.bind" in check.way_out


def test_ipsec(host):
    assert host.call(check_ipsec).found == "no policies"
    host.ip("xfrm policy add src 10.1.0.1 dst 10.1.0.2 dir out tmpl proto esp mode transport")
    assert host.call(check_ipsec).found.startswith("1 policies for what leaves")
