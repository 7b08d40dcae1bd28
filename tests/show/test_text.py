"""The status document for people."""

from documents import ALLOCATION, BUS, NETWORK, status
from msgspec.structs import replace

from scentd.control.status import BeaconStatus, OffloadStatus, Omitted, PeerStatus, ResourceStatus, SourceStatus
from scentd.model import NodeState
from scentd.show import text


def test_a_status_says_what_matters():
    shown = text.status(status())
    for line in (
        "no offload: datapath.offload is off",
        "network acme  key 00112233  signs stamps",
        "  cpu 0.50",
        "peer svc  key ab",
        "  affected: 10.0.0.7 and 2 more",
        "  no profile received yet",
        "from svc: accepted 9 by ipv4-option, ipv6-header, the last at " + text.moment(8.0),
        "from new: accepted 0; rejected: future 5; without a scent: pass 8",
        "  8 of them let in, which strict treatments would refuse",
        "  its clock seems to be 600 s ahead of ours, by packets that nobody has verified",
        "  to new without a scent: too-big 3",
        "from strangers: rejected: unknown-key 2",
        "rejected: bad-tag 5",
        "left without a scent, as no network.addresses has them: 10.0.0.99",
        "unstamped: too-big 3",
        "quarantine 10.0.0.7 of svc: quarantined until then",
        "bandwidth eth0 of svc: 20mbit",
        "alarm accepted -> applied: 6.0 ms on average, 7.0 ms at most",
    ):
        assert line in shown.splitlines()
    assert "policy isolate: fired 2, false 5, fired 1970" in shown
    assert "--all" not in shown


def test_who_is_not_verified_has_no_profile_to_wait_for():
    peers = [PeerStatus(name="far", network="acme", key_id="ef", highest_epoch=0, verified=False, profile=None)]
    shown = text.status(status(peers=peers, beacons=BeaconStatus(sent=5, failed=2, received=0)))
    assert "  not verified here: verify = false, or the network's key is not on this host" in shown.splitlines()
    assert "no profile received yet" not in shown
    assert "beacons sent 5, failed 2: the log has the reason" in shown.splitlines()


def test_what_is_not_in_effect_says_why():
    rate = ResourceStatus(
        kind="bandwidth", resource="eth9", peer="svc", text="20mbit", why_not="interface eth9: is gone"
    )
    shown = text.allocation(replace(ALLOCATION, resources=[rate]))
    assert "bandwidth eth9 of svc: 20mbit, not in effect: interface eth9: is gone" in shown


def test_what_is_held_and_a_dry_run_are_said():
    shown = text.allocation(replace(ALLOCATION, held=["a", "replicas"], dry_run=True))
    assert shown[:2] == ["dry run: policies only say what they would do", "held: a, replicas; scentd resume goes on"]
    assert text.allocation(replace(ALLOCATION, held=["*"]))[0] == "held: everything; scentd resume goes on"


def test_a_host_that_is_not_as_it_should_be():
    assert "the host is not as it should be: iptables: locked" in text.status(status(rules_why_not="iptables: locked"))


def test_nodes_and_sources_that_are_not_fresh_are_named():
    nodes = [NodeState(f"n{i:02}", (), "stale", "silent for 20 s", 20.0, True) for i in range(12)]
    source = SourceStatus(name="cpu", kind="cpu", state="failing", reason="gone")
    network = replace(
        NETWORK, nodes=nodes, node_states={"fresh": 3, "stale": 15}, sources=[source], source_states={"failing": 1}
    )
    lines = text.status(status(networks=[network])).splitlines()
    for line in (
        "  nodes: fresh 3, stale 15",
        "    node n00 is stale: silent for 20 s",
        "    and 5 more",
        "  sources: failing 1",
        "    source cpu is failing: gone",
    ):
        assert line in lines
    assert not any("n10" in line for line in lines)
    assert not any("nodes:" in line for line in text.status(status()).splitlines())


def test_what_is_left_out_is_said():
    shown = text.status(status(omitted=Omitted(peers=3, peers_without_profile=1, resources={"quarantine": 9})))
    assert "not shown (--all shows them): 3 peers (1 without a profile), resources: quarantine 9" in shown


def test_what_the_offload_serves_and_what_passes_the_queue_by():
    served = OffloadStatus(mechanism="tcx", egress=["br0"], ingress=["br0"], ports=["tap0", "tap1"])
    assert text.offload(served) == "offload by tcx: stamps on br0, verifies on br0, serves bridges' ports tap0, tap1"
    passed = OffloadStatus(why_not="datapath.offload is off", bypasses=["bridge br0: unseen"])
    assert text.offload(passed) == "no offload: datapath.offload is off\nunserved: bridge br0: unseen"


def test_the_bus_of_a_fleet():
    shown = text.status(status())
    for line in (
        "bus profiler: connected to 10.9.0.1:4222",
        "  the active profiler, term 7",
        "  decides nothing: p2-0b has the lease",
        "  provides pipe: told by alloc (term 9): 2 amounts, 1 with an end",
        "  c: heard of 2 s ago",
        "  d: never heard of",
        "  sent 5, taken 6",
        "  not sent or not taken: replayed 2",
    ):
        assert line in shown.splitlines()
    standby = replace(BUS, connected=False, why_not="gone", lease=replace(BUS.lease, active=False, holder="p2"))
    shown = text.status(status(bus=standby))
    assert "bus profiler: not connected: gone" in shown
    assert "  issues nothing: p2 has the lease" in shown
    assert "bus " not in text.status(status(bus=None))
