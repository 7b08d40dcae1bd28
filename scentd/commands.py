"""What each command does: a function of the arguments that cli.py has read, returning the exit status.

Each imports what it needs itself: most need little, and the guard should stay small.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import os
import sys
import threading
from typing import TYPE_CHECKING

from scentd.errors import ConfigError, HostError, UsageError

if TYPE_CHECKING:
    from scentd.config.sections import Config

CONFIG, SOCKET = "/etc/scentd/scentd.toml", "/run/scentd/control.sock"
OK, FAILED, USAGE = 0, 1, 2
METRICS_LIMIT = 1000  # networks, peers, resources and policies with metrics of their own
HANDED_OVER = 75  # EX_TEMPFAIL: the unit starts the daemon again at once (RestartForceExitStatus=)


def load_config(path: str) -> Config:
    """scentd.kinds.load_config."""
    from scentd import kinds

    return kinds.load_config(path)


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


def release_quarantine(arguments: argparse.Namespace) -> int:
    from scentd.config import units
    from scentd.control import client
    from scentd.control.server import RELEASE_MAX

    try:
        seconds = units.parse(arguments.duration, "seconds")
    except ValueError as error:
        raise UsageError(f"release --for: {error}") from None
    if not 0 < seconds <= RELEASE_MAX:
        raise UsageError(f"release --for {arguments.duration}: write more than 0s, at most {RELEASE_MAX / 86400:g}d")
    request = {"command": "release", "name": arguments.name, "seconds": seconds}
    said = client.change(control_socket(arguments), request)
    if arguments.json:
        print(json.dumps(said))
    else:
        print(f"released: {', '.join(said['released'])}; the same policy does not renew it for {arguments.duration}")
    return OK


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
