"""A network that is quarantined as a whole is still heard, so that its all-clear ends the quarantine.

a ---- b      a is attacked; b quarantines all of a's addresses
"""

from __future__ import annotations

import pytest
from edges import in_place, offloaded_pair
from hosts import answered, pair, start, until

pytestmark = pytest.mark.netns

INTERVAL, HOLD = 6, 14  # seconds; the view of a would be stale 18 s after its last profile


@pytest.fixture(params=[pair, offloaded_pair], ids=["queue", "offload"])
def nodes(request, tmp_path):
    with request.param("ac", tmp_path) as (a, b):
        a.network["interval"] = f"{INTERVAL}s"
        a.network["source"][1]["hold"] = f"{HOLD}s"
        do = {"kind": "quarantine", "target": "network", "timeout": "10s"}
        b.sections["policy"] = [{"name": "isolate", "when": "threat >= 0.5", "do": do}]
        start(a, b)
        if request.param is offloaded_pair:
            in_place(a, b)
        yield a, b


@pytest.mark.parametrize("busy", [False, True])
def test_the_all_clear_of_a_quarantined_network_is_heard(nodes, busy):
    """Of a silent network by its beacons; of a busy one by the packets that are dropped."""
    a, b = nodes
    until(lambda: b.profile(a), "a profile")
    with a.socket(4) as sender, b.socket(4) as receiver:
        assert answered(sender, receiver)
        a.alarm(a.host.ipv4)
        until(lambda: b.resources("quarantine"), "b quarantines", 10)
        until(lambda: not answered(sender, receiver, seconds=0.1), "the network is cut off", 5)
        first = b.profile(a)["epoch"]

        def heard():
            if busy:
                assert not answered(sender, receiver, seconds=0.1)
            return b.profile(a)["epoch"] >= first + INTERVAL

        until(heard, "its next profile is heard", 2 * INTERVAL)
        until(lambda: b.profile(a)["levels"].get("threat", 0.0) < 0.5, "its all-clear is heard", HOLD + 2 * INTERVAL)
        until(lambda: not b.resources("quarantine"), "the quarantine ends", 15)
        until(lambda: answered(sender, receiver, seconds=0.1), "packets come again", 5)
    (policy,) = b.status()["allocation"]["policies"]
    assert "stale" not in policy["outcomes"]
