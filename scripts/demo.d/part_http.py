"""(a) Scented traffic: HTTP and UDP in both families, the scent on the wire, none of it in the application."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from application import Application, Nginx, send_datagrams, url
from ends import End
from lab import BRIDGE, Lab, command, wait_for
from story import Story

from scentd.wire import ip

REQUESTS = 5
DATAGRAMS = 20
DRAIN_SECONDS = 0.3  # from the last packet on the bridge to the capture
PROFILE_SECONDS = 12.0


def without_verifier(story: Story, lab: Lab, application: Application) -> None:
    """The control: the application would see scents if nobody took them off."""
    for family in (4, 6):
        send_datagrams(lab, family, b"control", DATAGRAMS)
    wait_for("the control datagrams", lambda: application.payloads[b"control"] >= 2 * DATAGRAMS, 5)
    seen = application.scents
    story.check(
        "before scentd runs on the service host, its application sees scents",
        seen["udp4"] > 0 and seen["udp6"] > 0,
        f"{seen['udp4']} in IPv4 options, {seen['udp6']} in IPv6 destination options of {2 * DATAGRAMS} datagrams",
    )


def tell(story: Story, lab: Lab, tenant: End, service: End, nginx: Nginx, application: Application) -> dict[str, Any]:
    """What goes into the JSON: families."""
    before = nginx.served()
    queued = {end.host.name: end.queued() for end in (tenant, service)}
    application.tapping = True
    records = capture(story, lab, lambda: traffic(story, lab, application))
    served = nginx.served() - before
    queued = {end.host.name: end.queued() - queued[end.host.name] for end in (tenant, service)}
    families = []
    for family in (4, 6):
        scented, packets = on_the_wire(records, lab, family)
        key = tenant.status()["networks"][0]["key_id"]
        good = served[family] == REQUESTS and packets > DATAGRAMS + REQUESTS and scented == packets
        good &= all(r["key_id"] == key for r in records if r and r["family"] == f"ipv{family}")
        if story.check(
            f"HTTP over IPv{family} on the scented path",
            good,
            f"{served[family]} of {REQUESTS} requests answered; {scented} of {packets} captured packets scented",
        ):
            families.append(f"ipv{family}")
    wait_for("the first profile", lambda: service.status()["profiles"] > 0, PROFILE_SECONDS)
    profile = service.status()["peers"][0]["profile"]
    story.check(
        "ten fragments from those packets gave a signed profile",
        profile is not None and "cpu" in profile["levels"],
        ", ".join(f"{name} {value:.2f}" for name, value in profile["levels"].items()),
    )
    story.command(service.argv("status"))
    story.output(command(*service.argv("status")))
    application.tapping = False
    offloaded = service.offloaded()
    through_the_queues(story, queued, sum(r is not None for r in records), offloaded)
    nothing_seen(story, application, offloaded)
    return {"families": families}


def through_the_queues(story: Story, queued: dict[str, int], scented: int, offloaded: bool) -> None:
    """The kernel's own count of what it gave to the queues while the captured packets went by."""
    numbers = ", ".join(f"{count} on the {name}'s host" for name, count in queued.items())
    if offloaded:
        claim, holds = "the queues have nothing to do with it", not any(queued.values())
    else:
        claim, holds = "each of them went through a queue on both hosts", min(queued.values()) >= scented
    story.check(claim, holds, f"{scented} scented packets; in the queues {numbers}")


def nothing_seen(story: Story, application: Application, offloaded: bool) -> None:
    """A queue leaves NOPs in the place of an IPv4 scent; the program makes the header as short as it was."""
    looked, padded = application.packets, sum(application.padded.values())
    story.check(
        "the application sees no scent",
        not application.scents
        and all(looked[k] for k in ("udp4", "udp6", "tap4", "tap6"))
        and not (offloaded and padded),
        f"{sum(looked.values())} packets looked at (UDP by cmsg, TCP by raw socket), 0 scents, "
        f"{padded} with NOPs where IPv4 had one"
        if not application.scents
        else f"scents seen: {dict(application.scents)}",
    )


def traffic(story: Story, lab: Lab, application: Application) -> None:
    for family in (4, 6):
        argv = ["curl", "-g", "-f", "-s", "-S", "--max-time", "5", *[url(lab.service, family)] * REQUESTS]
        story.command(lab.tenant.argv(*argv[:-REQUESTS], argv[-1]))
        answer = lab.run(lab.tenant, *argv).splitlines()
        story.output(f"{answer[0]}   (and {len(answer) - 1} times more)")
        send_datagrams(lab, family, b"hello", DATAGRAMS)
    wait_for("the datagrams", lambda: application.payloads[b"hello"] >= 2 * DATAGRAMS, 5)


def capture(story: Story, lab: Lab, during: Any) -> list[dict[str, Any] | None]:
    """The scents on the bridge while `during` runs, decoded by the product; None for a packet without one."""
    file = lab.directory / "wire.pcap"
    argv = ["tcpdump", "-i", BRIDGE, "-n", "-U", "--immediate-mode", "-Z", "root", "-w", str(file)]
    # Neighbour discovery is never scented: a host must be found before it can be sent anything.
    argv += [f"(src host {lab.tenant.ipv4} or src host {lab.tenant.ipv6}) and (tcp or udp or ip6 proto 60)"]
    story.command(lab.switch.argv(*argv))
    process = lab.start(lab.switch, *argv, log="tcpdump.log")
    wait_for("tcpdump", lambda: "listening on" in lab.log("tcpdump.log"), 5)
    during()
    time.sleep(DRAIN_SECONDS)
    process.send_signal(signal.SIGINT)  # it writes what it has
    process.wait(5)
    decode = [sys.executable, "-P", "-m", "scentd", "decode", str(file), "--json"]
    found = [json.loads(line) for line in command(*decode).splitlines()]
    story.command(decode[:-1])
    for family in (4, 6):
        first = next((r for r in found if r["family"] == f"ipv{family}"), None)
        if first is not None:
            story.output("  ".join(f"{k} {v}" for k, v in first.items() if k not in ("at", "protocol", "data")))
    bare = sum(packets_in(file).values()) - len(found)
    return [*found, *[None] * bare]


def packets_in(file: Path) -> Counter[int]:
    """IP packets in a capture, by family."""
    from scapy.utils import RawPcapReader

    return Counter(frame[14] >> 4 for frame, _ in RawPcapReader(str(file)) if ip.parse(frame[14:]).source)


def on_the_wire(records: list[dict[str, Any] | None], lab: Lab, family: int) -> tuple[int, int]:
    """(scented, all) packets of the tenant. A bare packet counts for both families."""
    scented = sum(1 for r in records if r and r["source"] == lab.tenant.address(family))
    return scented, scented + sum(1 for r in records if r is None)
