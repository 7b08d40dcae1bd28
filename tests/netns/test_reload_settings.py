"""Every setting of the sections of the host: a reload applies it as a fresh start would, or refuses it with a way out.

a ---- 10.1.0.0/24, fd00:1::/64 ---- b, with the offload and without
"""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import socket
import sys
import time
import typing
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import pytest
from compiled import bpffs
from edges import offloaded
from guarded import guarded
from hosts import Node, acquainted, environment, pair, peer_of, start, until
from pinned import contents

from scentd.config import schema
from scentd.config.sections import Config, Peer
from scentd.state import key_files
from scentd.wire import maps
from scentd.wire.keys import identity

pytestmark = pytest.mark.netns

SO_SNDBUFFORCE = 32
FLAGS = 9  # in maps.OUTGOING

# Another value for each setting of these sections. What is refused says so; all else is applied.
OTHER: dict[str, typing.Any] = {
    "daemon.state_dir": "/nonexistent",
    "daemon.control_socket": "/nonexistent/socket",
    "daemon.control_group": "root",
    "daemon.log_level": "warning",
    "datapath.workers": 2,
    "datapath.queue": 1000,
    "datapath.queue_length": 8192,
    "datapath.mark_stamped": 0x1,
    "datapath.mark_queued": 0x2,
    "datapath.mark_verified": 0x4,
    "datapath.route_table": 23000,
    "datapath.rule_priority": 23000,
    "datapath.offload": None,  # the other one
    "datapath.pin_dir": "/sys/fs/bpf/another",
    "guard.socket": "/nonexistent/guard",
    "guard.exception": [{"prefix": "10.1.0.1/32", "protocol": "tcp", "port": 22, "direction": "in"}],
    "stamp.fail": "closed",
    "stamp.overload": "closed",
    "stamp.forwarded": True,
    "verify.fail": "open",
    "verify.overload": "open",
    "verify.max_age": "50s",
    "verify.max_future": "7s",
    "verify.grace": "3s",
    "verify.rejected": "pass",
    "verify.absent": "drop",
    "verify.mark_glance": 0x00FF0000,
    "peer.public_key": None,  # another key
    "peer.addresses": ["10.1.0.0/24"],
    "peer.stamp": False,
    "peer.verify": False,
    "peer.bind": "sender",
    "peer.rejected": "pass",
    "peer.absent": "pass",
    "peer.absent_ipv6_fragments": "pass",
    "peer.stamp_ipv6_fragments": True,
}
# The host does not show these: the tests that are named do.
UNSEEN = {
    "daemon.log_level": "test_reload_daemon.py",
    "daemon.control_group": "test_reload_daemon.py",
    "stamp.overload": "test_an_overloaded_queue",
    "verify.overload": "test_an_overloaded_queue",
}
REFUSED = ("daemon.state_dir", "daemon.control_socket", "datapath.", "guard.socket")
APPLIED = [name for name in OTHER if not name.startswith(REFUSED)]


def sections() -> dict[str, type[schema.Table]]:
    """The sections that say what happens on the host; what is measured and decided is made anew with each reload."""
    found: dict[str, type[schema.Table]] = {"peer": Peer}
    for field in msgspec.structs.fields(Config):
        kind, _ = schema.unwrap(schema.members(Config)[0][field.name])
        if isinstance(kind, type) and issubclass(kind, schema.Table):
            found[field.encode_name] = kind
    return found


def test_every_setting_is_tried():
    names = {f"{name}.{f.encode_name}" for name, kind in sections().items() for f in msgspec.structs.fields(kind)}
    elsewhere = {"peer.name", "peer.endpoint", "peer.metrics"}  # test_reload.py
    elsewhere |= {"peer.verifiers", "peer.verifier_endpoint"}  # test_anycast.py
    elsewhere |= {name for name in names if name.startswith("bus.")}  # test_fleet.py
    # test_reload_daemon.py, roles/test_allocator.py, core/allocate/test_refuse.py
    elsewhere |= {name for name in names if name.startswith("allocator.")}
    assert names - elsewhere - {"peer.next_public_key"} == set(OTHER)  # that one: test_rotation.py


@pytest.fixture(scope="module", params=["queue", "offload"])
def nodes(request, tmp_path_factory) -> Iterator[tuple[Node, Node]]:
    directory = tmp_path_factory.mktemp("rs")
    with ExitStack() as stack:
        a, b = stack.enter_context(pair("rs", directory))
        if request.param == "offload":
            offloaded(stack.enter_context(bpffs(directory / "bpf")), a, b)
        a.peers, b.peers = [peer_of(b)], [peer_of(a, absent="reject")]
        stack.enter_context(guarded(b))
        start(a, b)
        acquainted(b, a)
        yield a, b


@pytest.fixture
def b(nodes) -> Iterator[Node]:
    """The node whose configuration changes, and is put back."""
    node = nodes[1]
    saved = copy.deepcopy((node.peers, node.sections, node.pin_dir))
    yield node
    node.peers, node.sections, node.pin_dir = saved
    node.write()
    assert json.loads(node.cli("reload", "--json").stdout)["applied"]


def change(node: Node, name: str) -> None:
    section, key = name.split(".")
    value = OTHER[name]
    if name == "peer.public_key":
        value = str(identity(key_files.parse_secret(key_files.generate())).public)
    elif name == "datapath.pin_dir" and node.pin_dir:
        node.pin_dir = Path(value)
    elif name == "datapath.offload":
        value = "off" if node.pin_dir else "auto"
    if section == "peer":
        node.peers = [{**node.peers[0], key: value}]
    else:
        node.sections[section] = {**node.sections.get(section, {}), key: value}


def state(node: Node) -> dict[str, typing.Any]:
    """What the host has of this node's configuration."""
    host, found = node.host, {}
    found["rules"] = [host.out(p, "-t", t, "-S") for p in ("iptables", "ip6tables") for t in ("raw", "security")]
    found["routes"] = [host.out("ip", f, "route", "show", "table", "all", "proto", "83") for f in ("-4", "-6")]
    document = node.directory / "closed.json"
    found["closed"] = document.read_text() if document.exists() else ""
    found["routing rules"] = [host.out("ip", family, "rule") for family in ("-4", "-6")]
    tables = re.split(r"^(?=table )", node.host.out("nft", "list", "ruleset"), flags=re.M)
    kept = "".join(t for t in tables if "scentd_closed" not in t or "jump" in t)  # an open one stays beside queues
    kept = re.sub(r"\tchain \w+ \{\n(\t\ttype .*\n)?\t\}\n", "", kept)  # a chain that has lost its rules stays
    found["nft"] = re.sub(r"packets \d+ bytes \d+|scentd_closed_\w+|# progname.*", "", kept).splitlines()
    if node.pin_dir is not None:
        for program in ("stamp", "verify"):
            (selector,) = contents(node, f"{program}-selector").values()
            both = contents(node, f"{program}-settings")
            found[program] = both[(int.from_bytes(selector, "little") & 1).to_bytes(4, "little")]
            found[f"{program} prefixes"] = contents(node, f"{program}-prefixes")
        found["identities"] = contents(node, "verify-identities")
        found["flags"] = {k: maps.OUTGOING.unpack(v)[FLAGS] for k, v in contents(node, "stamp-outgoing").items()}
    return found


def differences(one: dict, other: dict) -> dict:
    """By part of the state, what only one of the two has."""
    return {k: changed for k in one if (changed := lines(one[k]) ^ lines(other[k]))}


def lines(part: typing.Any) -> set:
    if isinstance(part, dict):
        return set(part.items())
    if isinstance(part, list):
        part = "\n".join(part)
    return {part} if isinstance(part, bytes) else set(part.splitlines())


@pytest.mark.parametrize("name", [n for n in OTHER if n.startswith(REFUSED)])
def test_what_is_refused_changes_nothing(b, name):
    before = state(b)
    pinned_to = b.pin_dir
    change(b, name)
    b.write()
    done = b.host.run(*reload_argv(b), check=False, env=environment())
    b.pin_dir = pinned_to
    assert done.returncode == 1
    assert f"{name}: changed; this needs a restart" in done.stderr
    assert not differences(state(b), before)


def reload_argv(node: Node) -> list[str]:
    """By the socket of the daemon that runs: a changed one is not there yet."""
    return [sys.executable, "-m", "scentd", "reload", "--socket", str(node.control), "--config", str(node.config)]


@pytest.mark.parametrize("name", [n for n in APPLIED if n not in UNSEEN])
def test_what_is_applied_is_on_the_host(b, name):
    """The programs' maps show what the queue's workers are told, too. `stamp.fail` shows in the rules of a queue."""
    if (b.pin_dir is None) != (name == "stamp.fail"):
        pytest.skip("not shown on this path; test_a_reload_is_as_good_as_a_start")
    if b.pin_dir:
        until(lambda: contents(b, "stamp-outgoing"), "an epoch, whose flags say how its packets are stamped")
    before = state(b)
    change(b, name)
    b.write()
    done = b.cli("reload")
    assert done.returncode == 0, done.stderr
    assert differences(state(b), before)


GROUPS = {
    "loose": ("stamp.fail", "stamp.forwarded", "verify.fail", "verify.max_age", "verify.mark_glance", "peer.absent"),
    "tight": ("verify.absent", "verify.max_future", "verify.grace", "verify.rejected", "peer.bind", "peer.rejected"),
    "apart": ("guard.exception", "peer.addresses", "peer.absent_ipv6_fragments", "peer.stamp_ipv6_fragments"),
    "mute": ("peer.stamp", "peer.public_key"),
    "deaf": ("peer.verify",),
}


def test_every_group_is_complete():
    assert sorted(n for names in GROUPS.values() for n in names) == sorted(n for n in APPLIED if n not in UNSEEN)


@pytest.mark.parametrize("group", GROUPS)
def test_a_reload_is_as_good_as_a_start(b, group):
    for name in GROUPS[group]:
        change(b, name)
    b.write()
    assert b.cli("reload").returncode == 0
    issued = b.status()["networks"][0]["issued"]
    until(lambda: b.status()["networks"][0]["issued"] > issued, "a pair that is new has a profile")
    reloaded = state(b)
    b.stop()
    b.start()
    until(lambda: not differences(state(b), reloaded), f"as before: {differences(state(b), reloaded)}")


@pytest.mark.parametrize("direction", ["stamp", "verify"])
def test_an_overloaded_queue(nodes, b, direction):
    """A worker that does not read: what its queue does not take goes on or not, as the reload has said."""
    a, _ = nodes
    if b.pin_dir is not None:
        pytest.skip("the programs decline next to nothing")
    sender, receiver = (b, a) if direction == "stamp" else (a, b)
    for overload in ("closed", "open", "closed"):
        b.sections[direction] = {"overload": overload}
        b.write()
        assert b.cli("reload").returncode == 0
        time.sleep(1.0)  # the worker has taken it up
        with sender.socket(4) as one, receiver.socket(4) as other, paused(b):
            one.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 1 << 26)
            for _ in range(6000):  # datapath.queue_length is 4096
                one.sendto(b"many", other.getsockname())
            other.settimeout(1.0)
            arrived = True
            try:
                other.recv(100)
            except TimeoutError:
                arrived = False
            assert arrived == (overload == "open")
        if overload == "closed":
            until(lambda: b.status()["other"][f"overload_{direction}"] >= 1000, "what was dropped is counted")
            until(lambda: f"as {direction}.overload says" in b.log.read_text(), "and told")


@contextmanager
def paused(node: Node) -> Iterator[None]:
    (worker,) = node.status()["workers"]
    os.kill(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(worker, signal.SIGCONT)


# -- on trial ----------------------------------------------------------------


def test_an_unconfirmed_reload_goes_back(b):
    before = state(b)
    change(b, "verify.absent")
    b.write()
    done = b.cli("reload", "--confirm", "6s")
    assert done.returncode == 0
    assert "on trial" in done.stdout
    assert differences(state(b), before)
    assert "on trial" in b.cli("status").stdout
    until(lambda: b.status()["reloads"]["reverted"], "it goes back")
    b.sections.pop("verify")
    b.write()  # what `rules show` compares with
    assert not differences(state(b), before)
    assert b.cli("confirm").returncode == 1


def test_a_confirmed_reload_stays(b):
    reverted = b.status()["reloads"]["reverted"]
    change(b, "verify.absent")
    b.write()
    assert b.cli("reload", "--confirm", "6s").returncode == 0
    after = state(b)
    assert b.cli("confirm").returncode == 0
    time.sleep(6.5)
    assert not differences(state(b), after)
    assert b.status()["reloads"]["reverted"] == reverted
