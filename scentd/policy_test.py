"""`scentd policy test FILE`: what other policies would have decided, on the views that the daemon has recorded."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from scentd.errors import UsageError
from scentd.model import Decision, View

if TYPE_CHECKING:
    from scentd.config.sections import Config

SAME, DIFFERENT = 0, 1
SHOWN = 200  # differences that are printed as text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("test",), help="compare the policies of FILE with those of --config")
    parser.add_argument("file", metavar="FILE", help="a whole configuration, as the daemon would get it")
    parser.add_argument(
        "--replay",
        action="store_true",
        help="on all recorded views, in order; without it on each peer's newest one, as if it were the first",
    )
    parser.add_argument("--since", default="24h", metavar="TIME", help="how far back, e.g. 30m (default 24h)")


def run(arguments: argparse.Namespace) -> int:
    """Print the differences; 1 if there are any, 2 if it cannot be told. Raises ScentdError."""
    from scentd.config.units import parse
    from scentd.kinds import load_config
    from scentd.state import history

    today, tomorrow = load_config(arguments.config), load_config(arguments.file)
    try:
        since = time.time() - parse(arguments.since, "seconds")
    except ValueError as error:
        raise UsageError(f"--since {arguments.since}: {error}") from None
    path = Path(today.daemon.state_dir) / today.allocator.history
    try:
        recorded = list(history.views(path, since))
    except (sqlite3.Error, msgspec.DecodeError) as error:
        way_out = "name the running configuration with --config; a daemon records views as they come"
        raise UsageError(f"{path}: {error}; {way_out}") from None
    seen = recorded if arguments.replay else list(newest(recorded))
    before, after = decisions(today, seen), decisions(tomorrow, seen)
    gone, new = without(before, after), without(after, before)
    if arguments.json:
        lists = {name: [dataclasses.asdict(d) for d in some] for name, some in (("gone", gone), ("new", new))}
        print(json.dumps({"views": len(seen), **lists}))
    else:
        print(text(seen, gone, new))
    return DIFFERENT if gone or new else SAME


def newest(views: Iterable[View]) -> Iterator[View]:
    yield from {view.peer: view for view in views}.values()


def decisions(config: Config, views: Iterable[View]) -> list[Decision]:
    """What the policies of a configuration decide on these views of its peers."""
    from scentd.core.allocate.replay import Replay

    peers = [p.name for p in config.peer]
    replay, known = Replay(config.policy, config.resource, config.budget, peers), set(peers)
    return [decision for view in views if view.peer in known for decision in replay.take(view)]


def without(some: Iterable[Decision], others: Iterable[Decision]) -> list[Decision]:
    """Those of `some` that are not among the others. Reasons do not count, as thresholds are in them."""
    there = {key(d) for d in others}
    return [d for d in some if key(d) not in there]


def key(d: Decision) -> tuple[str, str, int, str, str, str]:
    return d.peer, d.policy, d.epoch, d.action, d.target, d.after


def text(views: list[View], gone: list[Decision], new: list[Decision]) -> str:
    peers = len({view.peer for view in views})
    lines = [f"{len(views)} views of {peers} peers: -{len(gone)} +{len(new)} decisions"]
    marked = sorted(
        [*(("-", d) for d in gone), *(("+", d) for d in new)], key=lambda pair: (pair[1].at, pair[0] == "+")
    )
    lines += [f"{sign} {decision_text(d)}" for sign, d in marked[:SHOWN]]
    if len(marked) > SHOWN:
        lines.append(f"... {len(marked) - SHOWN} more; --json has all")
    return "\n".join(lines)


def decision_text(d: Decision) -> str:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(d.at))
    change = f"{d.before or '-'} -> {d.after or '-'}"
    return f"{at} {d.peer}: {d.policy or '-'} {d.action} {d.target} {change} (epoch {d.epoch}: {d.reason})"
