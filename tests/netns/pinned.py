"""What a node's daemon has pinned, and other programs' view of it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from hosts import Node

from scentd.datapath.offload import pins
from scentd.datapath.offload.bpfmap import Map
from scentd.wire import maps


def pinned(node: Node, name: str) -> Path:
    """A map, such as verify-clock."""
    assert node.pin_dir is not None
    return node.pin_dir / f"maps-{maps.MAPS_VERSION}" / name


def links(node: Node) -> list[Path]:
    assert node.pin_dir is not None
    return sorted(node.pin_dir.glob("link-*"))


def programs(node: Node) -> set[str]:
    """Tags of the programs at the node's interfaces: hashes of their instructions."""
    numbers = [bpftool("link", "show", "pinned", str(link)).get("prog_id", 0) for link in links(node)]
    return {bpftool("prog", "show", "id", str(number))["tag"] for number in numbers if number}


def receiving(node: Node) -> int:
    """The number of a map that a successor keeps."""
    return bpftool("map", "show", "pinned", str(pinned(node, "verify-receiving")))["id"]


def end_lease(node: Node) -> None:
    """Make it the time at which the verifier stops deciding without a daemon."""
    fd = pins.get(str(pinned(node, "verify-clock")))
    assert fd is not None
    try:
        clock, first = Map(fd), bytes(4)
        value = clock.lookup(first)
        assert value is not None
        offset, _, _ = maps.CLOCK.unpack(value)
        clock.update(first, maps.CLOCK.pack(offset, 0, 0))
    finally:
        os.close(fd)


def contents(node: Node, name: str) -> dict[bytes, bytes]:
    """The entries of a map."""
    fd = pins.get(str(pinned(node, name)))
    assert fd is not None
    try:
        return dict(Map(fd).items())
    finally:
        os.close(fd)


def take_off(node: Node) -> None:
    """Detach the programs, as somebody else might."""
    for link in links(node):
        subprocess.run(["bpftool", "link", "detach", "pinned", link], check=True)


def bpftool(*arguments: str) -> dict:
    return json.loads(subprocess.run(["bpftool", "-j", *arguments], capture_output=True, check=True).stdout)
