"""The story of scentd in one run; see ../demo. The table at its end holds nothing that was not measured."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

import part_alarm
import part_attack
import part_http
import part_load
from application import Application, Nginx
from ends import INTERVAL, OFFLOADED, SERVICE, TENANT, End, Monitor
from lab import Lab, wait_for
from story import DemoError, Story, out_of_the_way

from scentd.errors import ScentdError

OK, FAILED, INTERRUPTED = 0, 1, 130
PROGRAMS = ("ip", "iptables", "ip6tables", "nft", "tc", "nginx", "curl", "tcpdump")
FLEET_PROGRAMS = ("nats-server", "prometheus-postgres-exporter", "sshd", "sshpass", "nsenter", "setpriv")
TESTS = Path(__file__).resolve().parents[2] / "tests"


def main() -> int:
    arguments = parser().parse_args()
    story = Story(out_of_the_way() if arguments.json else sys.stdout)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    result: dict[str, Any] = {}
    error, status = "", FAILED
    try:
        check_host(FLEET_PROGRAMS if arguments.fleet else ())
        if arguments.fleet:
            tell_fleet(story, result)
        else:
            run(story, result, arguments.offload, arguments.keep)
    except (DemoError, ScentdError, OSError, AssertionError) as problem:
        error = str(problem)
        print(f"demo: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        error, status = "interrupted", INTERRUPTED
        print("demo: interrupted; everything is removed", file=sys.stderr)
    except Exception as problem:  # a defect of the demo; who reads the JSON must still get one
        error = f"{type(problem).__name__}: {problem}"
        traceback.print_exc()
    ok = story.ok and not error
    if story.rows:
        story.table()
    if arguments.json:
        failed = [row.claim for row in story.rows if not row.holds]
        print(json.dumps({"ok": ok, **result, "failed": failed, "seconds": round(story.seconds, 1), "error": error}))
    return OK if ok else status


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="demo",
        description="Shows on real traffic what scentd does: a tenant, a service host and an attacker in network "
        "namespaces. Takes about a minute, needs root, leaves nothing behind.",
    )
    made.add_argument(
        "--offload",
        choices=("auto", "off"),
        default="auto",
        help="auto: BPF programs do what they can where they load, the queues the rest; off: the queues do everything",
    )
    made.add_argument(
        "--fleet",
        action="store_true",
        help="another story: many hosts with NATS between them; a server and the active profiler are killed",
    )
    made.add_argument("--json", action="store_true", help="the last line is the result as JSON, the story on stderr")
    made.add_argument("--keep", action="store_true", help="stay until Ctrl-C before the end, for a look around")
    made.add_argument("--no-setup", action="store_true", help="do not run scripts/setup first")
    return made


def interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def tell_fleet(story: Story, result: dict[str, Any]) -> None:
    """The hosts of a fleet are made as the tests make them."""
    sys.path[:0] = [str(TESTS), str(TESTS / "netns")]
    import fleet_story

    fleet_story.tell(story, result)


def check_host(more: tuple[str, ...]) -> None:
    if os.geteuid() != 0:
        raise DemoError("needs root, for network namespaces; run it with sudo")
    missing = [name for name in (*PROGRAMS, *more) if shutil.which(name) is None]
    if missing:
        raise DemoError(f"not found: {', '.join(missing)}; scripts/setup installs them")


def run(story: Story, result: dict[str, Any], offload: str, keep: bool) -> None:
    meter = part_load.Meter()
    with Lab() as lab:
        story.part("0", "A tenant, a service host and an attacker on one bridge")
        hosts = ", ".join(host.namespace for host in (lab.tenant, lab.service, lab.attacker))
        story.say(f"Namespaces: {hosts}; their bridge is in {lab.switch.namespace}.")
        if offload == "auto":
            mount_bpffs(story, lab)
        tenant, service = End(lab, lab.tenant, offload), End(lab, lab.service, offload)
        application = Application(lab, lab.service)
        try:
            nginx = Nginx(lab, lab.service)
            limit = part_load.threshold(meter.read())
            tenant.configure(TENANT, service, limit)
            service.configure(SERVICE, tenant, limit)
            parts(story, result, lab, tenant, service, nginx, application, limit)
            if keep:
                look_around(story, tenant, service)
        except (DemoError, ScentdError):
            for end in (tenant, service):
                story.say(f"The last lines of the {end.host.name}'s daemon:")
                story.output("\n".join(lab.log(f"{end.host.name}.log").splitlines()[-8:]))
            raise
        finally:
            application.close()
    left = lab.left_behind()
    story.check("nothing is left behind", not left, ", ".join(left) or "namespaces and files are gone")


def mount_bpffs(story: Story, lab: Lab) -> None:
    """Where the daemons pin what their BPF programs need; without it they say that they do without the offload."""
    try:
        lab.mount_bpffs()
    except DemoError as error:
        story.say(f"No BPF file system, hence no offload: {error}")


def parts(
    story: Story,
    result: dict[str, Any],
    lab: Lab,
    tenant: End,
    service: End,
    nginx: Nginx,
    application: Application,
    limit: float,
) -> None:
    before = {end.host.name: end.surroundings() for end in (tenant, service)}
    story.command(tenant.start())
    monitor = Monitor(tenant)
    wait_for("the first epoch", lambda: tenant.status()["networks"][0].get("epoch"), 10)
    story.say(f"The tenant signs a profile every {INTERVAL} s (the default of 5 s would make this longer to watch).")
    part_http.without_verifier(story, lab, application)
    story.command(service.start())
    time.sleep(0.1)  # what was on its way before the rules were there
    application.forget()
    result |= datapath(story, tenant, service)

    story.part("a", "HTTP on the scented path; the scent on the wire; none of it in the application")
    result |= part_http.tell(story, lab, tenant, service, nginx, application)
    old = part_attack.souvenirs(lab, b"attack souvenir")

    story.part("b", "Real load in the tenant: its pipe is widened before it asks")
    result |= part_load.tell(story, lab, tenant, service, limit)

    story.part("c", "An intrusion event: the node is quarantined, and released when the time is over")
    result |= part_alarm.tell(story, lab, tenant, service, application, monitor)

    story.part("d", "The attacker replays, changes and forges scents")
    part_attack.tell(story, lab, service, application, old)

    story.part("e", "The whole run in numbers; stopping: only what is ours is removed, all of it")
    result |= totals(story, tenant, service, application)
    stop(story, before, tenant, service)


def datapath(story: Story, tenant: End, service: End) -> dict[str, Any]:
    """What goes into the JSON: datapath, and why it is not more."""
    here, there = service.status(), tenant.status()
    path, offload = here["datapath"], here["offload"]
    how = offload["why_not"] or f"{offload['mechanism']} on {', '.join(offload['ingress'])} of both hosts"
    if path == OFFLOADED:
        story.say(
            "BPF programs stamp at tc egress and verify at tc ingress, before the host's IP stack. The queues get what "
            "the programs leave to them: packets with other options or headers, and ICMP errors of path MTU discovery."
        )
    else:
        story.say("Every packet to be stamped or verified goes through a queue of netfilter to a process of scentd.")
    story.check(
        "the packet path is the same on both hosts, and the one asked for",
        path == there["datapath"] and (path == OFFLOADED or service.offload == "off" or bool(offload["why_not"])),
        f"{path}: {how}" if path == there["datapath"] else f"service: {offload}; tenant: {there['offload']}",
    )
    return {"datapath": path, "why_not": offload["why_not"]}


def totals(story: Story, tenant: End, service: End, application: Application) -> dict[str, Any]:
    """The numbers of both daemons, once the workers' last reports are in (one a second)."""
    time.sleep(1.3)
    sender, receiver = tenant.status(), service.status()
    rejected = {reason: n for reason, n in receiver["rejected"].items() if n}
    decisions = service.explain("acme")["decisions"][::-1]  # oldest first
    seen = sum(application.scents.values())
    kinds = {d["action"] for d in decisions}
    story.check(
        "decisions: widen, isolate, release",
        {"amount", "quarantine", "release"} <= kinds,
        f"{len(decisions)} in the log, each with its epoch and rule",
    )
    story.check(
        "over the whole run",
        sender["stamped"] > 0 and receiver["accepted"] > 0 and seen == 0 and receiver["profiles"] > 0,
        f"{sender['stamped']} stamped, {receiver['accepted']} accepted, {receiver['profiles']} profiles, "
        f"{seen} scents seen by the application",
    )
    problems = {k: v for k, v in (sender["other"] | receiver["other"]).items() if "error" in k and v}
    story.check("no internal error", not problems, str(problems or "none"))
    return {
        "datapath": receiver["datapath"],  # once more: a daemon may have given the offload up
        "why_not": receiver["offload"]["why_not"],
        "stamped": sender["stamped"],
        "accepted": receiver["accepted"],
        "absent": receiver["absent"],
        "profiles": receiver["profiles"],
        "options_seen_by_application": seen,
        "rejected": rejected,
        "decisions": decisions,
    }


def stop(story: Story, before: dict[str, dict[str, str]], tenant: End, service: End) -> None:
    statuses = [end.stop() for end in (tenant, service)]
    changed = [
        f"{end.host.name}: {what}"
        for end in (tenant, service)
        for what, text in end.surroundings().items()
        if text != before[end.host.name][what]
    ]
    left = [str(path) for end in (tenant, service) for path in end.directory.glob("*.sock")]
    story.check("SIGTERM: both daemons end in order", statuses == [0, 0], f"status {statuses[0]} and {statuses[1]}")
    story.check(
        "iptables, ip rule, routes, nft, tc and BPF programs are as before",
        not changed and not left,
        ", ".join(changed + left) or "compared on both hosts, before and after",
    )


def look_around(story: Story, tenant: End, service: End) -> None:
    story.say("The daemons are started again for a look around; Ctrl-C ends it and removes everything.")
    for end in (tenant, service):
        end.start()
        story.command(end.argv("status"))
        story.command(end.host.argv("bash"))
    try:
        signal.pause()
    except KeyboardInterrupt:
        story.say("Removing everything.")


if __name__ == "__main__":
    sys.exit(main())
