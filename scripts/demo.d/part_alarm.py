"""(c) An intrusion event: alarm epoch, quarantine, release when its time is over."""

from __future__ import annotations

import json
import re
import socket
import time
from datetime import UTC, datetime
from typing import Any

from application import SILENCE, Application, Flow, url
from ends import TIMEOUT, End, Monitor
from lab import Lab, wait_for
from story import Story

CUT_SECONDS = 5.0
RELEASE_SECONDS = TIMEOUT + 7.0
FLOWING = 100  # packets, before the event and after the release


def tell(
    story: Story, lab: Lab, tenant: End, service: End, application: Application, monitor: Monitor
) -> dict[str, Any]:
    """What goes into the JSON: alarm_to_drop_ms."""
    with Flow(lab) as flow:
        wait_for("the steady flow", lambda: len(application.flow) >= FLOWING, 5)
        story.say("Two epochs are a second apart at least, so the event waits until the last one is that old.")
        wait_for("an epoch of a second's age", lambda: time.time() - tenant.status()["networks"][0]["epoch"] > 1.2, 10)
        event_at = raise_alarm(story, lab, tenant)
        lost, last = wait_for("the flow to be cut", lambda: cut(flow, application, event_at), CUT_SECONDS)
        delay = (flow.sent[lost] - event_at) * 1000
        profile = service.status()["peers"][0]["profile"]
        threat, nodes = profile["levels"]["threat"], ", ".join(profile["affected"])
        story.check(
            "the event makes an alarm epoch",
            profile["epoch"] in monitor.alarms() and threat >= 0.5,
            f"epoch {profile['epoch']}: threat {threat:.2f}, affected {nodes}",
        )
        count, by = dropped(story, lab, service)
        reached = http_answers(lab)
        story.check(
            "the node is quarantined",
            count > 0 and not reached,
            f"{delay:.1f} ms from the event to the first dropped packet; {count} dropped by {by} so far; "
            f"HTTP from the node: {'answered' if reached else 'no answer'}",
        )
        released = wait_for("the release", lambda: back(application, last), RELEASE_SECONDS)
        away = released - flow.sent[lost]
        story.check(
            "it is released when its time is over",
            TIMEOUT - 1 <= away <= TIMEOUT + 3,
            f"packets arrive again after {away:.1f} s of {TIMEOUT} s",
        )
        wait_for("HTTP after the release", lambda: http_answers(lab), 5)
    return {"alarm_to_drop_ms": round(delay, 2)}


def dropped(story: Story, lab: Lab, service: End) -> tuple[int, str]:
    """(how many packets of the node were dropped, by what): what comes first on the way in drops them all."""
    argv = ["nft", "list", "table", "inet", "scentd"]
    story.command(service.host.argv(*argv))
    listing = lab.run(service.host, *argv)
    story.output("\n".join(line for line in listing.splitlines() if "elements" in line or "packets" in line))
    if not service.offloaded():
        return counted(listing), "nftables"
    story.say("The program at tc ingress drops what comes from the node before nftables sees it.")
    return service.status()["other"]["offload_quarantined"], "the program"


def raise_alarm(story: Story, lab: Lab, tenant: End) -> float:
    """Write to the EVE socket what Suricata would. When (monotonic)."""
    lines = b""
    for family in (4, 6):
        alert = {
            "timestamp": datetime.now(UTC).isoformat(),
            "event_type": "alert",
            "src_ip": lab.attacker.address(family),
            "dest_ip": lab.tenant.address(family),
            "alert": {
                "severity": 1,
                "category": "Successful Administrator Privilege Gain",
                "signature": "GPL ATTACK_RESPONSE id check returned root",
            },
        }
        lines += json.dumps(alert).encode() + b"\n"
    story.say("The tenant's intrusion detection reports (one line for each address of the node):")
    story.output(lines.decode().splitlines()[0])
    with socket.socket(socket.AF_UNIX) as end:
        end.connect(str(tenant.directory / "eve.sock"))
        at = time.monotonic()
        end.sendall(lines)
    return at


def cut(flow: Flow, application: Application, event_at: float) -> tuple[int, int] | None:
    """(number of the first packet that was dropped, of the last that came), once nothing has come for SILENCE."""
    last = max(application.flow)
    lost = last + 1
    quiet = time.monotonic() - application.flow[last]
    if quiet < SILENCE or lost >= len(flow.sent) or flow.sent[lost] < event_at:
        return None
    return lost, last


def back(application: Application, last: int) -> float:
    """When the first packet after the cut came, 0.0 while none has."""
    later = sorted(at for number, at in application.flow.copy().items() if number > last)
    return later[0] if len(later) >= FLOWING else 0.0


def http_answers(lab: Lab) -> bool:
    argv = ["curl", "-s", "-o", "/dev/null", "--max-time", "0.4", "-w", "%{http_code}", url(lab.service, 4)]
    return lab.run(lab.tenant, *argv, statuses=(0, 7, 28)) == "200"


def counted(listing: str) -> int:
    """Packets that the quarantine's counters have seen."""
    return sum(map(int, re.findall(r"packets (\d+) bytes", listing)))
