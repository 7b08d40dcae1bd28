"""The command line: every command and its options. Noun commands show, verb commands change."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable
from typing import Any

from scentd import __version__, commands, hold, policy_test, report
from scentd.commands import CONFIG, FAILED, OK, USAGE
from scentd.errors import ConfigError, ScentdError, UsageError

GUARD, CLOSED = "/run/scentd-guard/guard.sock", "/var/lib/scentd/closed.json"

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
    top.set_defaults(run=commands.status)
    subparsers = top.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str, **more: Any) -> argparse.ArgumentParser:
        # SUPPRESS: `scentd --json status` and `scentd status --json` mean the same.
        shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
        shared.add_argument("--config", metavar="FILE", help=f"configuration file (default {CONFIG})")
        shared.add_argument("--socket", metavar="PATH", help="control socket (default: the configuration's)")
        shared.add_argument("--json", action="store_true", help="one JSON document on standard output")
        more |= {"help": text, "description": text[0].upper() + text[1:] + ".", "parents": [shared]}
        made = subparsers.add_parser(name, **more)
        made.set_defaults(run=run)
        return made

    run = command("run", commands.run_daemon, "run the daemon in the foreground until TERM or INT")
    run.add_argument(
        "--leave",
        action="store_true",
        help="at the end leave everything on the host, for the next daemon or `scentd cleanup`; for service managers",
    )
    shown = command("status", commands.status, "show networks, peers, counters and the allocation of a running daemon")
    shown.add_argument("--all", action="store_true", help="every entry of long lists, not only the most troubled ones")
    shown.add_argument("--view", default="text", metavar="NAME", help="how: text (default), prometheus")
    command("monitor", commands.monitor, "print epochs, profiles, alarms, decisions and refusals as they happen")
    explained = command(
        "explain", commands.explain, "say how policies stand for a peer, or how a profile of ours came about"
    )
    explained.add_argument("peer", metavar="PEER", nargs="?", help="a peer's name")
    explained.add_argument("--profile", metavar="NETWORK", help="how this network's last profile came about")
    explained.add_argument("--limit", type=int, default=20, help="decisions shown (default 20)")
    command("metrics", commands.metrics, "print the counters in Prometheus text format")
    exporter = command("exporter", commands.export, "serve the metrics over HTTP; run it as an unprivileged user")
    exporter.add_argument("--listen", default="127.0.0.1:9736", metavar="HOST:PORT", help="default 127.0.0.1:9736")
    command("keygen", commands.keygen, "print a new secret key; keep it in a file of mode 0600")
    command("pubkey", commands.pubkey, "read a secret key on standard input, print its public key")
    command("check-config", commands.check_config, "check the configuration and its key files, report every mistake")
    changed = command("config", commands.change_config, "give old names in the configuration their names of today")
    changed.add_argument("action", choices=("migrate",))
    changed.add_argument("--dry-run", action="store_true", help="say what would be renamed, and write nothing")
    files = command(
        "files", commands.show_files, "say where units, the example, alert rules and the operations text are"
    )
    files.add_argument("name", nargs="*", metavar="NAME", help="print the paths of these alone")
    rules = command("rules", commands.redirect_rules, "show, apply or remove the sets, routes and iptables rules")
    rules.add_argument("action", choices=("show", "apply", "remove"))
    cleanup = command("cleanup", commands.clean_up, "remove all that a daemon may have left on this host")
    cleanup.add_argument(
        "--unless-restarting",
        metavar="UNIT",
        help="for ExecStopPost=: leave everything for the daemon that comes next, if systemd restarts the unit; "
        "what is closed stays closed in any case",
    )
    guard = command(
        "guard", commands.run_guard, "keep closed what is closed, and packets waiting, while no daemon runs"
    )
    guard.add_argument("--listen", default=GUARD, metavar="PATH", help=f"socket (default {GUARD})")
    guard.add_argument("--document", default=CLOSED, metavar="FILE", help=f"what is closed (default {CLOSED})")
    reload = command(
        "reload", commands.reload_daemon, "have the daemon apply its changed configuration; say what it refuses"
    )
    reload.add_argument(
        "--confirm",
        metavar="TIME",
        help='on trial, e.g. "60s": go back to the configuration before, unless `scentd confirm` follows in time',
    )
    confirmed = functools.partial(commands.print_outcome, request={"command": "confirm"}, done="confirmed")
    command("confirm", confirmed, "keep the configuration that is on trial")
    released = command(
        "release", commands.release_quarantine, "end quarantines, which the same policy does not renew for a time"
    )
    released.add_argument("name", metavar="PREFIX|PEER", help="the senders within a prefix, or all of a peer")
    released.add_argument("--for", dest="duration", default="1h", metavar="TIME", help="default 1h, at most 30d")
    revoke = command(
        "revoke", commands.revoke_key, "from now on accept nothing of a stolen public key, whatever else says so"
    )
    revoke.add_argument("key", nargs="?", metavar="PUBLIC_KEY", help="as `scentd pubkey` prints it; without: list them")
    revoke.add_argument("--undo", action="store_true", help="take the revocation back")
    report.add_command(command, commands.control_socket)
    hold.add_commands(command, commands.control_socket)
    policy = command("policy", policy_test.run, "say what other policies would have decided: scentd policy test FILE")
    policy_test.add_arguments(policy)
    examined = command(
        "doctor", commands.doctor, "say what this kernel and host can do, what is missing and the way out"
    )
    examined.add_argument(
        "--here", action="store_true", help="only what the unit's sandbox may forbid; doctor runs this in it"
    )
    decode = command("decode", commands.decode_packets, "decode the scents in a capture file")
    decode.add_argument("file", metavar="PCAP", help="a capture of tcpdump -w, or - for standard input")
    return top
