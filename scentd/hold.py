"""`scentd hold`, `scentd resume`: nothing of some resources or peers is changed meanwhile, whatever policies want."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable


def add_commands(command: Callable[..., argparse.ArgumentParser], control_socket: Callable[..., str]) -> None:
    for name, text in (
        ("hold", "leave the amounts of resources as they are, whatever policies want, until `scentd resume`"),
        ("resume", "go on after `scentd hold`; without names with everything"),
    ):
        parser = command(name, lambda arguments, name=name: ask(arguments, control_socket(arguments), name), text)
        parser.add_argument("names", nargs="*", metavar="NAME", help="of a resource or a peer; default: all")


def ask(arguments: argparse.Namespace, socket: str, name: str) -> int:
    """Hold or resume, and print what is held then. Raises ScentdError."""
    from scentd.control import client

    names = arguments.names or (["*"] if name == "hold" else [])
    held = client.change(socket, {"command": name, "names": names})
    if arguments.json:
        print(json.dumps(held))
    else:
        shown = ["everything" if what == "*" else what for what in held["held"]]
        print(f"held: {', '.join(shown)}; `scentd resume` goes on" if shown else "nothing is held")
    return 0
