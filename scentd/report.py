"""`scentd event`: reports a security event to the running daemon."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any, get_args

from scentd.errors import UsageError

EPILOG = """\
examples:
  scentd event --network acme --severity 0.8 --node 10.0.0.5 --detail "backdoor found"
  scentd event --network acme --severity 0.4 --kind policy --for 10m

The network's threat t becomes 1 - (1 - t)(1 - S), until the time is over. A severity of 0.5 or more (`alarm` of
the source) makes a profile at once, so that peers can act on it; with --node they know which packets are the
node's. The same event said again only lasts longer.

The network needs a source that takes reports, in scentd.toml:
  [[network.source]]
  kind = "event"

Only root may do this. exit status: 0 it counts, 1 it does not (one line says why), 2 wrong usage
"""


def add_command(command: Callable[..., argparse.ArgumentParser], socket: Callable[[argparse.Namespace], str]) -> None:
    """Add the command by what adds all; `socket`: the control socket by the command's arguments."""
    parser = command(
        *("event", lambda arguments: report(arguments, socket(arguments))),
        "report a security event to the running daemon",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--network", required=True, metavar="NAME", help="the network that it happened to")
    parser.add_argument("--severity", required=True, metavar="S", help="above 0.0, up to 1.0: how sure, and how bad")
    parser.add_argument(
        "--kind", default="intrusion", metavar="KIND", help="intrusion (default), malware, policy, anomaly"
    )
    parser.add_argument("--node", default="", metavar="ADDRESS", help="the affected node's address in the network")
    parser.add_argument("--for", dest="hold", metavar="TIME", help='e.g. "60s"; default: `hold` of the source (60s)')
    parser.add_argument(
        "--detail",
        default="",
        metavar="TEXT",
        help="for people: `scentd monitor` shows it with an alarm; never sent to peers",
    )


def report(arguments: argparse.Namespace, socket: str) -> int:
    """Report, print what became of it; the exit status. Raises UsageError, ScentdError."""
    from scentd.control import client

    taken = client.change(socket, {"command": "event", "report": request(arguments)})
    if arguments.json:
        print(json.dumps(taken))
    else:
        of = f" of node {taken['node']}" if taken["node"] else ""
        print(f"{taken['kind']}{of} {'counts' if taken['begins'] else 'goes on'} in network {taken['network']}")
    return 0


def request(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of model.EventReport. Raises UsageError."""
    from scentd.model import DETAIL_MAX, EventKind

    if arguments.kind not in get_args(EventKind):
        raise UsageError(f"--kind {arguments.kind}: write one of {', '.join(get_args(EventKind))}")
    return {
        "network": arguments.network,
        "kind": arguments.kind,
        "severity": severity(arguments.severity),
        "node": arguments.node,
        "hold": None if arguments.hold is None else seconds(arguments.hold),
        "detail": arguments.detail[:DETAIL_MAX],
    }


def severity(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 1.0:
        raise UsageError(f"--severity {text}: write a number above 0.0, up to 1.0")
    return value


def seconds(text: str) -> float:
    from scentd.config import units
    from scentd.model import HOLD_MAX

    try:
        value = units.parse(text, "seconds")
    except ValueError as error:
        raise UsageError(f"--for {text}: {error}") from None
    if not 0.0 < value <= HOLD_MAX:
        raise UsageError(f"--for {text}: write more than 0s, up to {HOLD_MAX / 3600:.0f}h")
    return value
