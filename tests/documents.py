"""A status document for the tests of what reads it."""

from scentd.control.status import (
    AllocationStatus,
    BeaconStatus,
    BusStatus,
    DelayStatus,
    Glance,
    GuardStatus,
    LeaseStatus,
    NetworkStatus,
    OffloadStatus,
    Omitted,
    PeerStatus,
    PeerTraffic,
    PolicyStatus,
    ProfileStatus,
    ProvidingStatus,
    ResourceStatus,
    SourceStatus,
    Status,
)
from scentd.model import NodeState
from scentd.wire import layout

REASONS = [name for name in layout.VERDICTS.values() if name not in ("accepted", "absent")]

PROFILE = ProfileStatus(
    epoch=100,
    interval=5,
    age=2.5,
    overall=None,
    levels={"threat": 1.0},
    glance=Glance(0.2, 1.0),
    nodes=3,
    affected=["10.0.0.7"],
    affected_count=3,
)
NETWORK = NetworkStatus(
    name="acme",
    key_id="00112233",
    signs=True,
    stamps=True,
    collectors={"eve_lines": 6},
    sources=[SourceStatus(name="cpu", kind="cpu", state="failing", reason="gone")],
    source_states={"failing": 1},
    nodes=[NodeState("n1", ("db",), "fresh", "", 1.0, True)],
    node_states={"fresh": 1},
    intake={"late": 3},
    epoch=100,
    issued=7,
    interval=5.0,
    overall=0.25,
    levels={"cpu": 0.5},
)
BUS = BusStatus(
    name="profiler",
    connected=True,
    server="10.9.0.1:4222",
    why_not="",
    lease=LeaseStatus(active=True, instance="p1-0a", holder="p1-0a", term=7),
    allocation_lease=LeaseStatus(active=False, instance="p1-0a", holder="p2-0b", term=3),
    providing=ProvidingStatus(resources=["pipe"], terms={"alloc": 9}, amounts=2, restricted=1, file_failures=0),
    counters={"sent": 5, "sent_bytes": 900, "taken": 6, "replayed": 2},
    heard={"c": 1.5, "d": None},
)
ALLOCATION = AllocationStatus(
    resources=[
        ResourceStatus(kind="quarantine", resource="10.0.0.7", peer="svc", text="quarantined until then", until=9.0),
        ResourceStatus(
            kind="bandwidth", resource="eth0", peer="svc", text="20mbit", amount=2e7, observed=1e7, unit="bit/s"
        ),
    ],
    decisions={"quarantine": 1, "oscillation": 1},
    policies=[PolicyStatus(policy="isolate", outcomes={"fired": 2, "false": 5}, true_now=1, fired_at=8.0)],
    delays=[DelayStatus(name="alarm_applied", count=2, mean=0.006, largest=0.007, last=0.005)],
)


def status(**changes) -> Status:
    whole = {
        "version": "1",
        "started": 1.0,
        "config": "/etc/scentd/scentd.toml",
        "datapath": "nfqueue",
        "offload": OffloadStatus(why_not="datapath.offload is off"),
        "workers": [7],
        "worker_restarts": 1,
        "reloads": {"applied": 2, "refused": 1},
        "networks": [NETWORK],
        "peers": [
            PeerStatus(name="svc", network="acme", key_id="ab", highest_epoch=100, profile=PROFILE),
            PeerStatus(name="new", network="acme", key_id="cd", highest_epoch=0, profile=None),
        ],
        "traffic": [
            PeerTraffic(
                name="svc", accepted=9, carriers=["ipv4-option", "ipv6-header"], accepted_at=8.0, clock_offset=1.5
            ),
            PeerTraffic(
                name="new",
                rejected={"future": 5},
                absent={"pass": 8},
                let_in=8,
                unstamped={"too-big": 3},
                clock_offset=-600.0,
                clock_refused=True,
            ),
        ],
        "bus": BUS,
        "strangers": PeerTraffic(name="", rejected={"unknown-key": 2}),
        "uncovered": ["10.0.0.99"],
        "omitted": Omitted(),
        "stamped": 10,
        "accepted": 9,
        "absent": 8,
        "rejected": dict.fromkeys(REASONS, 0) | {"bad-tag": 5},
        "treated": {"bad-tag:drop": 5},
        "unstamped": dict.fromkeys(layout.UNSTAMPED.values(), 0) | {"too-big": 3},
        "profiles": 7,
        "profile_errors": dict.fromkeys(layout.PROFILE_ERRORS.values(), 0),
        "beacons": BeaconStatus(sent=20, failed=0, received=10),
        "guard": GuardStatus(connected=True, closed=True, dropped=3, released=2),
        "other": {"internal_errors": 0},
        "allocation": ALLOCATION,
        "actuators": {"history_written": 4},
    }
    return Status(**{**whole, **changes})
