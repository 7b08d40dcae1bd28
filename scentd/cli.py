"""The command line. Noun commands show, verb commands change."""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from scentd import __version__
from scentd.errors import ConfigError, HostError, ScentdError, UsageError

if TYPE_CHECKING:
    from scentd.config.sections import Config

CONFIG, SOCKET = "/etc/scentd/scentd.toml", "/run/scentd/control.sock"
GUARD, CLOSED = "/run/scentd-guard/guard.sock", "/var/lib/scentd/closed.json"
OK, FAILED, USAGE = 0, 1, 2
METRICS_LIMIT = 1000  # networks, peers, resources and policies with metrics of their own
HANDED_OVER = 75  # EX_TEMPFAIL: the unit starts the daemon again at once (RestartForceExitStatus=)

DESCRIPTION = """\
Authenticated, in-band load and health for networks: signs what a network reports of
itself, puts it on the packets that leave, verifies and strips it where they arrive,
and lets policies act on it.
"""
EPILOG = """\
first steps:
  (umask 077; scentd keygen > /etc/scentd/acme.key)    make an identity
  scentd pubkey < /etc/scentd/acme.key                 what the other end's [[peer]] gets
  scentd check-config                                  every mistake of the configuration at once
  scentd doctor                                        can this host and kernel do it?
  scentd run                                           serve (systemd does this: scentd.service)
  scentd                                               show what a running daemon knows

exit status: 0 done, 1 it failed (one line says why and the way out), 2 wrong usage or configuration
signals of `scentd run`: HUP reads the configuration again, TERM and INT stop and clean up, USR1 ends with status
75 and leaves everything in place for the (newer) daemon that is started next
"""


def load_config(path: str) -> Config:
    """scentd.kinds.load_config. Not every command needs all that it imports, and the guard should be small."""
    from scentd import kinds

    return kinds.load_config(path)


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except ConfigError as error:
        print(f"scentd: {arguments.config}: {len(error.problems)} mistake(s):", file=sys.stderr)
        for problem in error.problems:
            print(f"  {problem}", file=sys.stderr)
        return USAGE
    except ScentdError as error:
        print(f"scentd: {error}", file=sys.stderr)
        return USAGE if isinstance(error, UsageError) else FAILED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return 130


def parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", default=CONFIG, metavar="FILE", help=f"configuration file (default {CONFIG})")
    common.add_argument("--socket", metavar="PATH", help="control socket (default: the configuration's)")
    common.add_argument("--json", action="store_true", help="one JSON document on standard output")
    top = argparse.ArgumentParser(
        prog="scentd",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    top.add_argument("--version", action="version", version=f"scentd {__version__}")
    top.set_defaults(run=status)
    commands = top.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        # SUPPRESS: `scentd --json status` and `scentd status --json` mean the same.
        shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
        shared.add_argument("--config", metavar="FILE", help=f"configuration file (default {CONFIG})")
        shared.add_argument("--socket", metavar="PATH", help="control socket (default: the configuration's)")
        shared.add_argument("--json", action="store_true", help="one JSON document on standard output")
        made = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", parents=[shared])
        made.set_defaults(run=run)
        return made

    run = command("run", run_daemon, "run the daemon in the foreground until TERM or INT")
    run.add_argument(
        "--leave",
        action="store_true",
        help="at the end leave everything on the host, for the next daemon or `scentd cleanup`; for service managers",
    )
    shown = command("status", status, "show networks, peers, counters and the allocation of a running daemon")
    shown.add_argument("--all", action="store_true", help="every entry of long lists, not only the most troubled ones")
    shown.add_argument("--view", default="text", metavar="NAME", help="how: text (default), prometheus")
    command("monitor", monitor, "print epochs, profiles, alarms, decisions and refusals as they happen")
    explained = command("explain", explain, "say how policies stand for a peer, or how a profile of ours came about")
    explained.add_argument("peer", metavar="PEER", nargs="?", help="a peer's name")
    explained.add_argument("--profile", metavar="NETWORK", help="how this network's last profile came about")
    explained.add_argument("--limit", type=int, default=20, help="decisions shown (default 20)")
    command("metrics", metrics, "print the counters in Prometheus text format")
    exporter = command("exporter", export, "serve the metrics over HTTP; run it as an unprivileged user")
    exporter.add_argument("--listen", default="127.0.0.1:9736", metavar="HOST:PORT", help="default 127.0.0.1:9736")
    command("keygen", keygen, "print a new secret key; keep it in a file of mode 0600")
    command("pubkey", pubkey, "read a secret key on standard input, print its public key")
    command("check-config", check_config, "check the configuration and its key files, report every mistake")
    changed = command("config", change_config, "give old names in the configuration their names of today")
    changed.add_argument("action", choices=("migrate",))
    changed.add_argument("--dry-run", action="store_true", help="say what would be renamed, and write nothing")
    files = command("files", show_files, "say where units, the example, alert rules and the operations text are")
    files.add_argument("name", nargs="*", metavar="NAME", help="print the paths of these alone")
    rules = command("rules", redirect_rules, "show, apply or remove the sets, routes and iptables rules")
    rules.add_argument("action", choices=("show", "apply", "remove"))
    cleanup = command("cleanup", clean_up, "remove all that a daemon may have left on this host")
    cleanup.add_argument(
        "--unless-restarting",
        metavar="UNIT",
        help="for ExecStopPost=: leave everything for the daemon that comes next, if systemd restarts the unit; "
        "what is closed stays closed in any case",
    )
    guard = command("guard", run_guard, "keep closed what is closed, and packets waiting, while no daemon runs")
    guard.add_argument("--listen", default=GUARD, metavar="PATH", help=f"socket (default {GUARD})")
    guard.add_argument("--document", default=CLOSED, metavar="FILE", help=f"what is closed (default {CLOSED})")
    reload = command("reload", reload_daemon, "have the daemon apply its changed configuration; say what it refuses")
    reload.add_argument(
        "--confirm",
        metavar="TIME",
        help='on trial, e.g. "60s": go back to the configuration before, unless `scentd confirm` follows in time',
    )
    confirmed = functools.partial(print_outcome, request={"command": "confirm"}, done="confirmed")
    command("confirm", confirmed, "keep the configuration that is on trial")
    revoke = command("revoke", revoke_key, "from now on accept nothing of a stolen public key, whatever else says so")
    revoke.add_argument("key", nargs="?", metavar="PUBLIC_KEY", help="as `scentd pubkey` prints it; without: list them")
    revoke.add_argument("--undo", action="store_true", help="take the revocation back")
    examined = command("doctor", doctor, "say what this kernel and host can do, what is missing and the way out")
    examined.add_argument(
        "--here", action="store_true", help="only what the unit's sandbox may forbid; doctor runs this in it"
    )
    decode = command("decode", decode_packets, "decode the scents in a capture file")
    decode.add_argument("file", metavar="PCAP", help="a capture of tcpdump -w, or - for standard input")
    return top


def run_daemon(arguments: argparse.Namespace) -> int:
    from scentd.daemon import Daemon
    from scentd.system import logs

    logs.setup(load_config(arguments.config).daemon.log_level)
    if os.geteuid() != 0:
        raise HostError("scentd run needs root (or CAP_NET_ADMIN and CAP_NET_RAW); see `scentd doctor`")

    async def serve() -> bool:
        return await Daemon(arguments.config, arguments.leave).run()

    return HANDED_OVER if asyncio.run(serve()) else OK


def status(arguments: argparse.Namespace) -> int:
    from scentd.control import client
    from scentd.show import VIEWS

    limit = 0 if getattr(arguments, "all", False) else None
    if arguments.json:
        print(json.dumps(client.ask(control_socket(arguments), {"command": "status", "limit": limit})))
        return OK
    name = getattr(arguments, "view", "text")
    if name not in VIEWS:
        raise HostError(f"--view {name}: no such view; known: {', '.join(VIEWS)}")
    print(VIEWS[name](client.status(control_socket(arguments), limit)).rstrip("\n"))
    return OK


def monitor(arguments: argparse.Namespace) -> int:
    from scentd.control.client import follow
    from scentd.show import text

    for event in follow(control_socket(arguments), {"command": "monitor"}):
        print(json.dumps(event) if arguments.json else text.event(event), flush=True)
    return OK


def explain(arguments: argparse.Namespace) -> int:
    from scentd.control import client
    from scentd.show import profile

    if (arguments.peer is None) == (arguments.profile is None):
        raise UsageError("explain: name a PEER, or a network of ours by --profile NETWORK")
    of_peer = {"command": "explain", "peer": arguments.peer, "limit": arguments.limit}
    of_profile = {"command": "explain-profile", "network": arguments.profile}
    answer = client.ask(control_socket(arguments), of_peer if arguments.peer else of_profile)
    print(json.dumps(answer) if arguments.json else profile.explained(answer))
    return OK


def metrics(arguments: argparse.Namespace) -> int:
    from scentd.control import client
    from scentd.show import prometheus

    sys.stdout.write(prometheus.exposition(client.status(control_socket(arguments), METRICS_LIMIT)))
    return OK


def export(arguments: argparse.Namespace) -> int:
    from scentd.control import client
    from scentd.show import prometheus

    host, _, port = arguments.listen.rpartition(":")
    if not host or not port.isdigit():
        raise HostError(f"--listen {arguments.listen}: write HOST:PORT, e.g. 127.0.0.1:9736")
    asked = functools.partial(client.status_if_any, control_socket(arguments), METRICS_LIMIT)
    prometheus.serve(asked, host.strip("[]"), int(port))
    threading.Event().wait()  # until it is interrupted
    return OK


def keygen(_: argparse.Namespace) -> int:
    from scentd.state import key_files

    if sys.stdout.isatty():
        print("keep this in a file of mode 0600: (umask 077; scentd keygen > FILE)", file=sys.stderr)
    print(key_files.generate())
    return OK


def pubkey(_: argparse.Namespace) -> int:
    from scentd.errors import KeyFileError
    from scentd.state import key_files
    from scentd.wire.keys import identity

    try:
        print(identity(key_files.parse_secret(sys.stdin.readline(1024))).public)
    except ValueError as error:
        raise KeyFileError(f"standard input: {error}") from None
    return OK


def check_config(arguments: argparse.Namespace) -> int:
    from scentd import config_file

    return config_file.check(load_config(arguments.config), arguments.config, arguments.json)


def change_config(arguments: argparse.Namespace) -> int:
    from scentd import config_file

    return config_file.rename(arguments.config, arguments.dry_run, arguments.json)


def show_files(arguments: argparse.Namespace) -> int:
    from scentd import files

    return files.show(arguments.name, arguments.json)


def redirect_rules(arguments: argparse.Namespace) -> int:
    from scentd.control import client
    from scentd.datapath.host import host

    config = load_config(arguments.config)
    if arguments.action == "show":
        print(host.show(config), end="")
    elif arguments.action == "apply":
        path = arguments.socket or config.daemon.control_socket
        if client.answers(path):  # it knows which queues its workers have
            client.change(path, {"command": "restore"})
            print("the daemon has made them again, by the configuration that it runs on")
        else:
            host.reinstall(config)
    else:
        refuse_beside_daemon(arguments, config, "it needs them; `systemctl stop scentd` removes them")
        host.cleanup(config)
    return OK


def refuse_beside_daemon(arguments: argparse.Namespace, config: Config, way_out: str) -> None:
    """Raise HostError if a daemon runs: its status would claim what is no longer there."""
    from scentd.control import client

    path = arguments.socket or config.daemon.control_socket
    if client.answers(path):
        raise HostError(f"a daemon runs here (control socket {path}); {way_out}")


def run_guard(arguments: argparse.Namespace) -> int:
    from scentd.guard import guard
    from scentd.system import logs

    logs.setup("info")
    guard.run(arguments.listen, arguments.document)
    return OK


def reload_daemon(arguments: argparse.Namespace) -> int:
    from scentd.config import units
    from scentd.control.server import TRIAL_MAX

    try:
        seconds = units.parse(arguments.confirm, "seconds") if arguments.confirm else 0.0
    except ValueError as error:
        print(f"scentd: --confirm {arguments.confirm}: {error}", file=sys.stderr)
        return USAGE
    if arguments.confirm and not 1 <= seconds <= TRIAL_MAX:
        print(f"scentd: --confirm {arguments.confirm}: write 1s to {TRIAL_MAX / 3600:.0f}h", file=sys.stderr)
        return USAGE
    return print_outcome(arguments, {"command": "reload", "confirm": seconds}, "reloaded")


def print_outcome(arguments: argparse.Namespace, request: dict[str, object], done: str) -> int:
    """Ask the daemon for a change, and print what became of it."""
    from scentd.control import client

    outcome = client.change(control_socket(arguments), request)
    if arguments.json:
        print(json.dumps(outcome))
        return OK if outcome["applied"] else FAILED
    if not outcome["applied"]:
        print("scentd: refused, nothing has changed:", *outcome["problems"], sep="\n  ", file=sys.stderr)
        return FAILED
    for problem in outcome["problems"]:
        print(f"scentd: applied but for: {problem}", file=sys.stderr)
    print(f"{done}{' on trial: `scentd confirm` keeps it' if outcome['trial_until'] else ''}")
    return FAILED if outcome["problems"] else OK


def revoke_key(arguments: argparse.Namespace) -> int:
    from scentd import revoke

    config, undo = load_or_default(arguments.config), getattr(arguments, "undo", False)
    if arguments.key is None and undo:
        raise UsageError("revoke --undo: name the PUBLIC_KEY; `scentd revoke` lists those that are revoked")
    if arguments.key is None:
        return revoke.show(config, arguments.json)
    return revoke.revoke(config, arguments.socket or config.daemon.control_socket, arguments.key, undo, arguments.json)


def clean_up(arguments: argparse.Namespace) -> int:
    from scentd import act
    from scentd.datapath.host import host
    from scentd.datapath.offload import applications
    from scentd.state import issued
    from scentd.system import service

    config, unit = load_or_default(arguments.config), arguments.unless_restarting
    if unit and (why := service.why_it_comes_back(unit, HANDED_OVER, USAGE)):
        print(f"{why}: what it made on the host stays until it is back", file=sys.stderr)
        return OK
    refuse_beside_daemon(arguments, config, "`systemctl stop scentd` first")
    applications.remove(config.datapath.pin_dir)
    host.cleanup(config)
    act.cleanup()
    issued.IssuedEpochs(issued.directory(config)).remove()
    if unit is None and host.open_closed(config):
        print("what strict peers send is no longer kept out: nothing is closed until a daemon runs", file=sys.stderr)
    return OK


def load_or_default(path: str) -> Config:
    """The configuration, or the defaults if it is wrong: cleaning up must not depend on it."""
    try:
        return load_config(path)
    except ConfigError as error:
        print(f"scentd: {path}: {error.problems[0]}; cleaning up with the default settings", file=sys.stderr)
        from scentd.config.sections import Config

        return Config()


def doctor(arguments: argparse.Namespace) -> int:
    from scentd.doctor import run

    return run.run(arguments.json, arguments.config if arguments.config != CONFIG else None, arguments.here)


def decode_packets(arguments: argparse.Namespace) -> int:
    from scentd.show import text
    from scentd.show.capture import scents

    for scent in scents(sys.stdin.buffer if arguments.file == "-" else arguments.file):
        print(json.dumps(scent) if arguments.json else text.scent(scent))
    return OK


def control_socket(arguments: argparse.Namespace) -> str:
    """By the option or the configuration. That may be root's alone, or broken while a daemon runs: then the default."""
    try:
        return arguments.socket or load_config(arguments.config).daemon.control_socket
    except ConfigError:
        if arguments.config != CONFIG:
            raise
        return SOCKET
